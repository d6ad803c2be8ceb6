"""The book: what each packet deserved, what happened to it, and whether that was wrong.

A packet's verdict is known by construction: the rules of this instant, as the tool that wrote them
understands them. Around a change of the rules both verdicts are right for packets that may have
been judged while the command ran; for packets sent after it returned only the new one is.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

SECOND = 1_000_000_000
FLIGHT = SECOND // 4
"""A packet is judged within so many ns of its sending (the veth's backlog on a busy machine)."""
PATIENCE = 3 * SECOND
"""A packet that did not arrive after so many ns was dropped."""
_KEPT = 20
OUTPUT = "OUTPUT"
"""The chain whose senders are told of a drop at once."""


class Kind(NamedTuple):
    """Packets that deserve the same verdict at every instant."""

    chain: str
    family: int
    name: str


Verdict = bool
"""True: accepted."""
BOTH = frozenset({True, False})


@dataclass(slots=True)
class _Sent:
    kind: Kind
    earliest: int
    latest: int


@dataclass(slots=True)
class Tally:
    """The result. `doubtful`: packets around a change of rules, for which both was right;
    `untold`: packets that did not leave, though their sender was told nothing."""

    sent: int = 0
    accepted: int = 0
    dropped: int = 0
    doubtful: int = 0
    stray: int = 0
    wrongly_accepted: int = 0
    wrongly_dropped: int = 0
    untold: int = 0
    evidence: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not (self.wrongly_accepted or self.wrongly_dropped or self.untold)

    def __str__(self) -> str:
        return (
            f"{self.sent} packets: {self.accepted} accepted, {self.dropped} dropped, of these"
            f" {self.doubtful} around a change; {self.wrongly_accepted} wrongly accepted,"
            f" {self.wrongly_dropped} wrongly dropped"
            f"{f', {self.untold} dropped with no word to their sender' if self.untold else ''}"
        )

    def add(self, other: Tally) -> None:
        for name in ("sent", "accepted", "dropped", "doubtful", "stray"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wrongly_accepted += other.wrongly_accepted
        self.wrongly_dropped += other.wrongly_dropped
        self.untold += other.untold
        self.evidence += other.evidence
        self.kinds += other.kinds


class Book:
    """Used by several threads: senders, a receiver, and whoever changes the rules."""

    def __init__(self, verdicts: Mapping[Kind, Verdict]) -> None:
        self.tally = Tally()
        self.act = "nothing"
        self._lock = threading.Lock()
        self._open: dict[int, _Sent] = {}
        self._next = 0
        self._times: dict[Kind, list[int]] = {kind: [0] for kind in verdicts}
        self._rights = {kind: [frozenset({verdict})] for kind, verdict in verdicts.items()}
        self._changed = 0
        self._awaited: dict[int, int] = {}

    def number(self) -> int:
        """A number for a packet that is about to be sent."""
        with self._lock:
            self._next += 1
            return self._next

    def sending(self, number: int, kind: Kind, earliest: int | None = None) -> None:
        """To be called before the packet is sent; `sent` afterwards."""
        now = time.monotonic_ns()
        with self._lock:
            self._open[number] = _Sent(kind, earliest or now, now + PATIENCE)
            self.tally.sent += 1
            self.tally.kinds[kind.name] += 1

    def sent(self, number: int) -> None:
        with self._lock:
            if number in self._open:
                self._open[number].latest = time.monotonic_ns()

    def unsent(self, number: int) -> None:
        """The packet could not be sent at all."""
        with self._lock:
            if self._open.pop(number, None):
                self.tally.sent -= 1

    def awaited(self, number: int) -> None:
        """When this packet passes is asked for later."""
        self._awaited[number] = 0

    def arrival(self, number: int) -> int:
        """When an awaited packet passed the filter; 0 if it has not."""
        return self._awaited[number]

    def received(self, number: int) -> None:
        """The packet passed the filter."""
        with self._lock:
            if number in self._awaited:
                self._awaited[number] = time.monotonic_ns()
            found = self._open.pop(number, None)
            if found is None:
                self.tally.stray += 1
                return
            found.latest = min(found.latest, time.monotonic_ns())
            self._judge(number, found, True)

    def refused(self, number: int) -> None:
        """The filter dropped the packet, and its sender was told."""
        with self._lock:
            found = self._open.pop(number, None)
            if found is not None:
                found.latest = time.monotonic_ns()
                self._judge(number, found, False)

    def settle(self, everything: bool = False) -> None:
        """Judge the packets that should have arrived by now."""
        limit = time.monotonic_ns() - PATIENCE
        with self._lock:
            late = [n for n, sent in self._open.items() if everything or sent.latest < limit]
            for number in late:
                sent = self._open.pop(number)
                self.tally.untold += sent.kind.chain == OUTPUT
                self._judge(number, sent, False)

    @contextmanager
    def changing(self, new: Mapping[Kind, Verdict]) -> Iterator[None]:
        """The rules change in this context, so that these kinds deserve other verdicts."""
        time.sleep(max(self._changed + FLIGHT - time.monotonic_ns(), 0) / SECOND)
        with self._lock:
            begin = max(time.monotonic_ns() - FLIGHT, self._changed)
            for kind, verdict in new.items():
                self._enter(kind, begin, self._rights[kind][-1] | {verdict})
        yield
        with self._lock:
            self._changed = time.monotonic_ns()
            for kind, verdict in new.items():
                self._enter(kind, self._changed, frozenset({verdict}))

    def _enter(self, kind: Kind, begin: int, right: frozenset[Verdict]) -> None:
        self._times[kind].append(begin)
        self._rights[kind].append(right)

    def _right(self, sent: _Sent) -> frozenset[Verdict]:
        times, rights = self._times[sent.kind], self._rights[sent.kind]
        first = bisect_right(times, sent.earliest) - 1
        last = bisect_right(times, sent.latest)
        return frozenset[Verdict]().union(*rights[first:last])

    def _judge(self, number: int, sent: _Sent, accepted: bool) -> None:
        right = self._right(sent)
        self.tally.accepted += accepted
        self.tally.dropped += not accepted
        self.tally.doubtful += right == BOTH
        if accepted in right:
            return
        self.tally.wrongly_accepted += accepted
        self.tally.wrongly_dropped += not accepted
        if len(self.tally.evidence) < _KEPT:
            since = (sent.earliest - self._changed) / SECOND
            self.tally.evidence.append(
                f"packet {number} ({sent.kind.chain} IPv{sent.kind.family} {sent.kind.name}) was"
                f" {'accepted' if accepted else 'dropped'}, during: {self.act};"
                f" sent {since:.3f} s after the last change of rules"
            )
