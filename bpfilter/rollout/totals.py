"""Packets per rule over all generations: a rule keeps its count as long as its text is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpfilter.compiler.ir import OpKind
from bpfilter.kernel.pack import place
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.shadow import Bounds
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.lexer import quote
from bpfilter.ruleset.model import RuleRef, Ruleset

Counts = tuple[Mapping[tuple[int, int], Bounds], "Early"]
"""Of one program: by slot and entry, and what was dropped early before it."""

Early = Mapping[tuple[Family, RuleRef], Bounds]
"""Packets dropped early, by rule: see `EarlyDrops.counted`."""


@dataclass(frozen=True, slots=True)
class RuleName:
    """A rule by its words, so that it is found again where others were inserted before it.

    Rules of equal words in one chain share a name. The policy's text is `-P VERDICT`.
    """

    family: Family
    table: str
    chain: str
    text: str


class Totals:
    """Sums over generations that are gone; the present one's are added when asked for."""

    def __init__(self) -> None:
        self._certain: Counter[RuleName] = Counter()
        self._possible: Counter[RuleName] = Counter()
        self._bytes: Counter[RuleName] = Counter()

    def add(
        self, prepared: Prepared, counts: Mapping[tuple[int, int], Bounds], early: Early
    ) -> None:
        """Keep what a program, and those that drop early before it, counted before it goes.

        Jumps count what ended behind them.
        """
        dropped = (
            (rule_name(prepared.rulesets[family], rule), bounds)
            for (family, rule), bounds in early.items()
        )
        for name, bounds in (*_named(prepared, counts), *dropped):
            self._certain[name] += bounds.certain
            self._possible[name] += bounds.possible
            self._bytes[name] += bounds.bytes

    def with_present(
        self,
        prepared: Prepared | None,
        counts: Mapping[tuple[int, int], Bounds],
        early: Early,
    ) -> Mapping[RuleName, Bounds]:
        """All that was counted, the present program's counts included."""
        sums = Totals()
        sums._certain, sums._possible = self._certain.copy(), self._possible.copy()
        sums._bytes = self._bytes.copy()
        if prepared is not None:
            sums.add(prepared, counts, early)
        return {
            name: Bounds(sums._certain[name], n, sums._bytes[name])
            for name, n in sums._possible.items()
        }


class AllTotals:
    """All that was counted; and apart, what was counted while programs decided."""

    def __init__(self) -> None:
        self._all, self._decided = Totals(), Totals()

    def keep(self, prepared: Prepared, counts: Counts, decides: bool) -> None:
        """Keep what a program counted before it goes."""
        for kept in (self._all, self._decided) if decides else (self._all,):
            kept.add(prepared, *counts)

    def now(
        self, prepared: Prepared | None, counts: Counts, decides: bool, decided: bool
    ) -> Mapping[RuleName, Bounds]:
        """With the present program's; `decided`: only what programs decided."""
        if not decided:
            return self._all.with_present(prepared, *counts)
        return self._decided.with_present(prepared if decides else None, *counts)


def _named(
    prepared: Prepared, counts: Mapping[tuple[int, int], Bounds]
) -> Iterator[tuple[RuleName, Bounds]]:
    slots = place(prepared.image)
    for (number, entry), bounds in counts.items():
        slot = slots[number]
        if slot is None:
            continue
        flat = slot.plan.flat
        if flat.entries[entry].kind in (OpKind.ACCEPT, OpKind.DROP, OpKind.ITEM):
            ruleset = prepared.rulesets[flat.family]
            for rule in (*flat.entries[entry].via, flat.entries[entry].rule):
                yield rule_name(ruleset, rule), bounds


def rule_name(ruleset: Ruleset, ref: RuleRef) -> RuleName:
    """The name of a rule or policy."""
    if ref.number == 0:
        policy = ruleset.tables[ref.table].chains[ref.chain].policy
        return RuleName(ruleset.family, ref.table, ref.chain, f"-P {policy}")
    rule = ruleset.rule(ref)
    words = [word for match in rule.matches for word in match.words]
    text = " ".join(quote(word) for word in (*words, *rule.target.words))
    return RuleName(ruleset.family, ref.table, ref.chain, text)
