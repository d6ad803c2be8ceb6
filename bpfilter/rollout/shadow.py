"""Shadow comparison by counters: what the program says each rule decided, against iptables' count.

For every terminal rule (and the policy) the program counts packets that *certainly* end there,
whatever their connection state, and packets that *possibly* do. So, over one period,
certain - lost - diverted ≤ iptables ≤ possible + unseen must hold, where `unseen` are packets that
reached the chain without a decision of the program (punts, other interfaces), `lost` are decided
packets that never reached the chain, and `diverted` are those that a dynamic rule (limit … -j
ACCEPT) ended before. A comparison of counters, not of packets: it cannot see two errors that
cancel out. Rules that other built-in chains can reach too are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.plan import ChainPlan
from bpfilter.errors import RolloutError
from bpfilter.ruleset.model import RuleRef, Ruleset, Table, TargetKind


@dataclass(frozen=True, slots=True)
class Bounds:
    """Packets that end at an entry for certain, and possibly; `bytes` of the certain ones."""

    certain: int
    possible: int
    bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Counted:
    """What the program counted of one chain: per entry, and packets as in `ShadowReport`."""

    entries: Sequence[Bounds]
    decided: int
    walked: int


@dataclass(frozen=True, slots=True)
class RuleCount:
    """One terminal rule over one period: the program's bounds and iptables' own count."""

    rule: RuleRef
    bounds: Bounds
    iptables: int

    def holds(self, above: int, below: int) -> bool:
        """Whether iptables' count lies within the bounds, widened by so many packets."""
        return self.bounds.certain - below <= self.iptables <= self.bounds.possible + above


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """`decided`: packets the program decided, at rules that are this chain's alone; `walked`: all
    that it decided and those it counted but had to punt.

    `judged`: packets that reached the chain. `diverted`: those that a dynamic rule ended.
    `left_out`: rules not compared.
    """

    rules: tuple[RuleCount, ...]
    left_out: int
    decided: int
    walked: int
    judged: int
    diverted: int

    @property
    def unseen(self) -> int:
        return max(self.judged - self.decided, 0)

    @property
    def lost(self) -> int:
        return max(self.walked - self.judged, 0)

    @property
    def mismatches(self) -> tuple[RuleCount, ...]:
        below = self.lost + self.diverted
        return tuple(rule for rule in self.rules if not rule.holds(self.unseen, below))

    @property
    def compared(self) -> int:
        """Rules that at least one packet was counted at, on either side."""
        return sum(bool(rule.iptables or rule.bounds.possible) for rule in self.rules)

    def __str__(self) -> str:
        return (
            f"{len(self.mismatches)} mismatches in {self.compared} rules with traffic"
            f" ({len(self.rules)} comparable, {self.left_out} not), by counters,"
            f" {self.judged} packets, {self.unseen} of them not decided by the program"
        )


def compare(before: Ruleset, after: Ruleset, chain: ChainPlan, counted: Counted) -> ShadowReport:
    """Compare one period of one chain.

    `before`, `after`: the ruleset with its counters at both ends. `counted`: what the program
    counted in between. RolloutError if they are not the same rules.
    """
    if before.digest != after.digest:
        raise RolloutError(
            "the rules were edited since their counters were read", hint="try again in a second"
        )
    table = after.tables[chain.table]
    others = {
        reached
        for name, other in table.chains.items()
        if other.policy is not None and name != chain.chain
        for reached in _reach(table, name)
    }
    bounds = _by_rule(chain, counted.entries)
    conditional = {item.rule for item in chain.flat.items if not item.terminal}
    counts, left_out, judged, diverted, shared = [], 0, 0, 0, 0
    reach = _reach(table, chain.chain)
    for ref in (r for name in reach for r in _ends(table, chain.table, chain.chain, name)):
        delta = _packets(after, ref) - _packets(before, ref)
        if ref.chain in others:
            left_out += 1
            shared += bounds.get(ref, Bounds(0, 0)).possible
            continue
        judged += delta
        if ref in conditional:
            left_out += 1
            diverted += delta
        else:
            counts.append(RuleCount(ref, bounds.get(ref, Bounds(0, 0)), delta))
    # What the program decided where iptables cannot tell whose packets they were does not count.
    decided = max(counted.decided - shared, 0)
    return ShadowReport(tuple(counts), left_out, decided, counted.walked, judged, diverted)


def judged(ruleset: Ruleset, table: str, chain: str) -> int:
    """Packets that ended in a built-in chain, by the counters of the rules where packets end.

    Exact where its user chains are not used by other built-in chains.
    """
    tables = ruleset.tables[table]
    refs = (ref for name in _reach(tables, chain) for ref in _ends(tables, table, chain, name))
    return sum(_packets(ruleset, ref) for ref in refs)


def _by_rule(chain: ChainPlan, entries: Sequence[Bounds]) -> Mapping[RuleRef, Bounds]:
    sums: dict[RuleRef, Bounds] = {}
    for entry, counted in zip(chain.flat.entries, entries, strict=True):
        if entry.kind in (OpKind.ACCEPT, OpKind.DROP, OpKind.ITEM):
            so_far = sums.get(entry.rule, Bounds(0, 0))
            sums[entry.rule] = Bounds(
                so_far.certain + counted.certain, so_far.possible + counted.possible
            )
    return sums


def _reach(table: Table, chain: str) -> tuple[str, ...]:
    seen = [chain]
    for name in seen:
        for rule in table.chains[name].rules:
            jumps = rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
            if jumps and rule.target.name not in seen:
                seen.append(rule.target.name)
    return tuple(seen)


def _ends(table: Table, table_name: str, chain: str, name: str) -> Sequence[RuleRef]:
    """The rules of a chain at which a packet may end; the policy too."""
    refs = [
        rule.ref
        for rule in table.chains[name].rules
        if rule.target.name in ("ACCEPT", "DROP") or rule.target.terminal
    ]
    return [*refs, RuleRef(table_name, name, 0)] if name == chain else refs


def _packets(ruleset: Ruleset, ref: RuleRef) -> int:
    chain = ruleset.tables[ref.table].chains[ref.chain]
    counters = chain.counters if ref.number == 0 else chain.rules[ref.number - 1].counters
    return 0 if counters is None else counters.packets
