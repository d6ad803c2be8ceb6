"""What a verification found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1
UNREACHABLE = "unreachable"
"""How the reason of a rule begins that no packet can reach."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """One packet or rule on which kernel and program differ.

    `run`: shadow, cutover or counters. `program_path`: the rules by the program; `kernel_path`: the
    rules whose counters the packet moved when it was sent again, alone.
    """

    run: str
    cause: str
    packet: Mapping[str, str]
    state: str
    program_path: tuple[str, ...]
    kernel_path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Missed:
    """A rule that no packet reached, and why."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Packets of one run by how their comparison ended, and by cause where they were not."""

    matched: int
    mismatched: int
    punted: Mapping[str, int]
    not_comparable: Mapping[str, int]

    @property
    def packets(self) -> int:
        """All packets of the run."""
        others = sum(self.punted.values()) + sum(self.not_comparable.values())
        return self.matched + self.mismatched + others


@dataclass(frozen=True, slots=True)
class ChainReport:
    """One built-in chain's comparison.

    `cutover` is None if there was none; `cutover_note` then says why. `rules`, `hit`: rules in
    reach of the chain, and those whose counters moved.
    """

    chain: str
    shadow: Tally
    states: Mapping[str, int]
    unsendable: Mapping[str, int]
    cutover: Tally | None
    cutover_note: str
    rules: int
    hit: int
    missed: tuple[Missed, ...]
    counters_compared: int
    divergences: tuple[Divergence, ...]

    @property
    def unreachable(self) -> int:
        """Rules that were not reached because no packet can reach them."""
        return sum(missed.reason.startswith(UNREACHABLE) for missed in self.missed)

    def missed_by_reason(self) -> Mapping[str, Sequence[str]]:
        """Reason → the rules that were not reached for it, the most frequent reason first."""
        found: dict[str, list[str]] = {}
        for missed in self.missed:
            found.setdefault(missed.reason, []).append(missed.rule)
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


@dataclass(frozen=True, slots=True)
class Report:
    """The verification of one family's ruleset with one backend."""

    source: str
    digest: str
    family: str
    backend: str
    seed: int
    chains: tuple[ChainReport, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def divergences(self) -> tuple[Divergence, ...]:
        """Those of all chains."""
        return tuple(found for chain in self.chains for found in chain.divergences)

    @property
    def holds(self) -> bool:
        """Whether kernel and program agreed wherever they could be compared."""
        return not self.divergences and not any(
            tally is not None and tally.mismatched
            for chain in self.chains
            for tally in (chain.shadow, chain.cutover)
        )

    def as_json(self) -> dict[str, Any]:
        """A document for `json.dump`."""
        return {"schema_version": SCHEMA_VERSION, "holds": self.holds, **asdict(self)}
