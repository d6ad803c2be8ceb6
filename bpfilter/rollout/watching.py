"""Watches what becomes of the packets that a loaded program foretold, as values of `comparison`.

One `Watch` belongs to one generation of the program. It only reads: what it costs packets, and what
the kernel needs for it, is said in `kernel.shadow`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.ir import Entry, OpKind
from bpfilter.compiler.plan import ChainPlan, Slot
from bpfilter.errors import KernelError
from bpfilter.kernel.config import Reason
from bpfilter.kernel.program import Classifier
from bpfilter.kernel.shadow import Shadow, Tally
from bpfilter.rollout.comparison import (
    Comparison,
    Incomparable,
    Mechanism,
    Pairs,
    RuleKey,
    Sample,
    Unseen,
    Verdict,
)
from bpfilter.rollout.shadow import ShadowReport
from bpfilter.ruleset.fields import Family, State

Numbers = npt.NDArray[np.uint64]

SETTLE_SECONDS = 2.0
"""A packet of which nothing was seen for so long is not on its way any more."""

_MOST_SAMPLES = 256
_VERDICTS = (Verdict.ACCEPT, Verdict.DROP, Verdict.OPEN)
_UNSEEN = {
    Unseen.BEFORE: Tally.BEFORE,
    Unseen.QUEUED: Tally.QUEUED,
    Unseen.VANISHED: Tally.VANISHED,
    Unseen.LOST: Tally.LOST,
}
_INCOMPARABLE = {
    Incomparable.TRANSLATED: Tally.TRANSLATED,
    Incomparable.OTHER_CHAIN: Tally.OTHER_CHAIN,
    Incomparable.EDITED: Tally.EDITED,
    Incomparable.FOREIGN: Tally.FOREIGN,
}


class Watch:
    """Compares from `start` to `close`; used by one thread."""

    def __init__(self, classifier: Classifier, shadow: Shadow, names: Mapping[int, str]) -> None:
        self._classifier = classifier
        self._shadow = shadow
        self._names = names
        self._since = time.time()
        self._keys = [_keys(slot) for slot in classifier.contents.slots]
        self._known = len({key for keys in self._keys for key in keys if key is not None})
        self._first: dict[RuleKey, float] = {}
        self._samples: list[Sample] = []
        self._dropped = 0
        self._stack = ExitStack()
        self._stack.callback(shadow.close)

    @classmethod
    def start(
        cls, classifier: Classifier, names: Mapping[int, str], *, revokes: bool = False
    ) -> Watch:
        """Compare what this classifier says; `names` are of interfaces, for samples.

        `revokes`: the first mismatch ends the lease in the kernel, see `Shadow.attach`.

        To be called in the network namespace of the rules, before the classifier is attached. It
        adds netfilter hooks, which the generation of the rules may show: observe it afterwards.
        Raises KernelError where the kernel lacks the means; then counters are what is left.
        """
        return cls(classifier, Shadow.attach(classifier, revokes=revokes), names)

    @property
    def mismatches(self) -> int:
        """Packets so far whose verdict the prediction excluded; cheap enough for every check."""
        return self._shadow.mismatches

    @property
    def lost(self) -> int:
        """Predictions that found no room to be remembered; as cheap."""
        return self._shadow.lost

    def share_filter(self, shared: bool) -> None:
        """See `Shadow.share_filter`; to be said before a generation of the rules is accepted."""
        self._shadow.share_filter(shared)

    def poll(self) -> None:
        """Take note of what came since the last call; at least every few seconds."""
        self._shadow.sweep(time.monotonic_ns(), SETTLE_SECONDS)
        offset = time.time() - time.monotonic()
        for raw in self._shadow.samples():
            if len(self._samples) < _MOST_SAMPLES:
                self._samples.append(self._sample(raw, offset))
            else:
                self._dropped += 1
        now = time.time()
        for key in self._counts():
            self._first.setdefault(key, now)

    def comparison(self) -> Comparison:
        """All since `start`."""
        self.poll()
        tally = self._shadow.tally()
        outcomes = self._classifier.outcomes()
        punted = self._classifier.punts()
        options = self._classifier.options
        rules = {key: self._pairs(key, counts) for key, counts in self._counts().items()}
        opened = sum(pairs.open for pairs in rules.values())
        incomparable = {cause: tally[name] for cause, name in _INCOMPARABLE.items()}
        incomparable[Incomparable.OPEN] = opened
        return Comparison(
            mechanism=Mechanism.PACKETS,
            since=self._since,
            share=options.shadow_share or options.verify_share,
            predicted=sum(outcomes.values()) + sum(punted.values()),
            punted=punted,
            rules=rules,
            known=self._known,
            unseen={cause: tally[name] for cause, name in _UNSEEN.items()},
            incomparable=incomparable,
            samples=tuple(self._samples),
            lost_samples=tally[Tally.SAMPLES_LOST] + self._dropped,
            remembered=tally[Tally.STORED],
        )

    def _counts(self) -> dict[RuleKey, Numbers]:
        """Per rule that decided packets, [predicted, actual]."""
        counts: dict[RuleKey, Numbers] = {}
        for number, keys in enumerate(self._keys):
            cells = self._shadow.pairs(number)
            for entry in np.flatnonzero(cells.any(axis=(1, 2))):
                key = keys[entry]
                if key is not None:
                    counts[key] = counts.get(key, 0) + cells[entry]
        return counts

    def _pairs(self, key: RuleKey, counts: Numbers) -> Pairs:
        found = {
            (_VERDICTS[said], _VERDICTS[was]): int(counts[said, was])
            for said, was in np.argwhere(counts)
        }
        return Pairs(found, self._first.get(key))

    def _sample(self, raw: np.void, offset: float) -> Sample:
        slot = self._classifier.contents.slots[int(raw["slot"])]
        assert slot is not None
        entry: Entry = slot.plan.flat.entries[int(raw["entry"])]
        return Sample(
            at=int(raw["time"]) / 1e9 + offset,
            key=RuleKey(slot.plan.flat.family, entry.rule),
            chain=(slot.plan.table, slot.plan.chain),
            interface=self._name(int(raw["device"])),
            out_interface=self._name(int(raw["out_device"])),
            header=raw["header"].tobytes()[: int(raw["bytes"])],
            state=State(1 << int(raw["state"])),
            predicted=_VERDICTS[int(raw["predicted"])],
            actual=_VERDICTS[int(raw["actual"])],
            via=entry.via,
        )

    def _name(self, index: int) -> str:
        return self._names.get(index, f"#{index}") if index else ""

    def close(self) -> None:
        """Stop comparing; what was counted is gone."""
        self._stack.close()


def _keys(slot: Slot | None) -> list[RuleKey | None]:
    """The rule that decides at each entry; None where no walk ends."""
    if slot is None:
        return []
    flat = slot.plan.flat
    return [
        None if entry.kind is OpKind.SKIP else RuleKey(flat.family, entry.rule)
        for entry in flat.entries
    ]


def start_if_possible(
    classifier: Classifier, names: Mapping[int, str], *, revokes: bool = False
) -> Watch | str:
    """A watch, or why there can be none here: a sentence."""
    try:
        return Watch.start(classifier, names, revokes=revokes)
    except KernelError as error:
        return f"packets cannot be compared one by one: {error.message}"


def by_counters(
    reports: Sequence[tuple[Family, ChainPlan, ShadowReport]],
    punted: Mapping[Reason, int],
    since: float,
) -> Comparison:
    """What the comparison of counters says, where packets cannot be compared one by one.

    A rule whose count lies within its bounds counts as so many matches. By how much it does not is
    the number of mismatches, which counters tell of no packet and no time.
    """
    rules: dict[RuleKey, Pairs] = {}
    for family, chain, report in reports:
        below = report.lost + report.diverted
        verdicts = _verdicts(chain)
        for count in report.rules:
            said = verdicts.get(count.rule, Verdict.OPEN)
            least, most = count.bounds.certain - below, count.bounds.possible + report.unseen
            off = max(least - count.iptables, count.iptables - most, 0)
            agreed = min(count.iptables, count.bounds.possible)
            counts: dict[tuple[Verdict, Verdict], int] = {}
            counts[(said, said if said is not Verdict.OPEN else Verdict.DROP)] = agreed
            if off and said is not Verdict.OPEN:
                other = Verdict.DROP if said is Verdict.ACCEPT else Verdict.ACCEPT
                counts[(said, other)] = off
            rules[RuleKey(family, count.rule)] = Pairs(
                {pair: number for pair, number in counts.items() if number}
            )
    decided = sum(report.decided for _, _, report in reports)
    return Comparison(
        mechanism=Mechanism.COUNTERS,
        since=since,
        share=1.0,
        predicted=decided + sum(punted.values()),
        punted=punted,
        rules=rules,
        unseen={Unseen.BEFORE: sum(report.lost for _, _, report in reports)},
        incomparable={Incomparable.OPEN: sum(report.diverted for _, _, report in reports)},
        samples=(),
        known=len(rules),
        remembered=decided,
    )


def _verdicts(chain: ChainPlan) -> dict[object, Verdict]:
    """What each terminal rule gives, if it gives one verdict only."""
    kinds = {OpKind.ACCEPT: Verdict.ACCEPT, OpKind.DROP: Verdict.DROP}
    found: dict[object, Verdict] = {}
    for entry in chain.flat.entries:
        if entry.kind in kinds:
            found[entry.rule] = kinds[entry.kind]
        elif entry.kind is OpKind.ITEM:
            verdicts = chain.flat.items[entry.argument].verdicts
            found[entry.rule] = Verdict(min(verdicts)) if len(verdicts) == 1 else Verdict.OPEN
    return found
