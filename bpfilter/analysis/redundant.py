"""Rules that could go: what they decide, a later rule decides alike.

Sound, not complete: a rule is named only if one later entry of the same verdict holds all packets
of it, and nothing in between that may hold some of them does anything else. Then all rules that
are named may go at once, for what covers a rule that covers another covers both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.ir import Action, Entry, FlatChain, OpKind
from bpfilter.compiler.plan import ChainPlan, Plan
from bpfilter.compiler.scope import closure
from bpfilter.ruleset.fields import ALL_STATES, Family, Field
from bpfilter.ruleset.model import RuleRef, Table, TargetKind

_FIELDS = (
    Field.DESTINATION,
    Field.SOURCE,
    Field.DESTINATION_PORT,
    Field.SOURCE_PORT,
    Field.PROTOCOL,
)
_TOP = (1 << 64) - 1
_MOST_TRIED = 8
_PLAIN = (OpKind.ACCEPT, OpKind.DROP)

Ends = npt.NDArray[np.uint64]


def redundant(plan: Plan) -> Mapping[RuleRef, RuleRef]:
    """For each redundant rule of `filter` the rule, or policy, that makes it so."""
    table = plan.ruleset.tables.get("filter")
    if table is None:
        return {}
    builtin = [("filter", name) for name, chain in table.chains.items() if chain.policy is not None]
    if not all(key in plan.chains for key in builtin):
        return {}  # what its rules do in a chain that is not looked at is not known
    found: dict[RuleRef, RuleRef] = {}
    needed = {rule.ref for name in _opaque(plan, table) for rule in table.chains[name].rules}
    for key in builtin:
        needed |= _unconditional(plan.chains[key])
        covered, others = _of_chain(plan.chains[key])
        found = {**covered, **found}
        needed |= others
    return {ref: by for ref, by in found.items() if ref not in needed}


def _opaque(plan: Plan, table: Table) -> Sequence[str]:
    """Chains whose rules are also executed by iptables itself, from a jump that is dynamic."""
    roots = [
        rule.target.name
        for chain in plan.chains.values()
        for ref, treatment in chain.treatments.items()
        if treatment.action not in (Action.JUMP, Action.GOTO)
        for rule in [plan.ruleset.rule(ref)]
        if rule.table == "filter" and rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
    ]
    return [chain.name for root in roots for chain in closure(table, root)]


def _unconditional(chain: ChainPlan) -> set[RuleRef]:
    """Rules that leave nothing to those behind them, which are no entries therefore."""
    return {
        ref
        for ref, treatment in chain.treatments.items()
        if any(not guard.box and guard.states == ALL_STATES for guard in treatment.guards)
    }


def _of_chain(chain: ChainPlan) -> tuple[Mapping[RuleRef, RuleRef], set[RuleRef]]:
    """Rules whose every entry is covered, with what covers one; and those that are needed."""
    flat = chain.flat
    columns = [_column(flat, name) for name in _FIELDS]
    columns = [(low, high) for low, high in columns if low.any() or (high != _TOP).any()]
    kinds = np.array([entry.kind for entry in flat.entries])
    covered: dict[RuleRef, RuleRef] = {}
    needed: set[RuleRef] = set()
    for index, entry in enumerate(flat.entries):
        if entry.rule.number == 0 or entry.rule in needed:
            continue
        by = _cover(flat.entries, index, kinds, columns)
        if by is None:
            needed.add(entry.rule)
        else:
            covered[entry.rule] = by
    return covered, needed


def _cover(
    entries: Sequence[Entry],
    index: int,
    kinds: npt.NDArray[np.int_],
    columns: Sequence[tuple[Ends, Ends]],
) -> RuleRef | None:
    entry = entries[index]
    if entry.kind not in _PLAIN:
        return None
    start = index + 1
    same = kinds[start:] == entry.kind
    meets, holds = ~same, same
    for low, high in columns:
        meets = meets & (high[start:] >= low[index]) & (low[start:] <= high[index])
        holds = holds & (low[start:] <= low[index]) & (high[start:] >= high[index])
    blocked = np.flatnonzero(meets)
    end = next(
        (at for at in blocked.tolist() if entries[start + at].states & entry.states), len(meets)
    )
    for at in np.flatnonzero(holds[:end]).tolist()[:_MOST_TRIED]:
        other = entries[start + at]
        if other.rule != entry.rule and _encloses(other, entry):
            return other.rule
    return None


def _encloses(outer: Entry, inner: Entry) -> bool:
    """Whether one entry holds every packet of another, in every state."""
    if inner.states & ~outer.states:
        return False
    return all(
        name in inner.box and inner.box[name].intersect(values) == inner.box[name]
        for name, values in outer.box.items()
    )


def _column(flat: FlatChain, name: Field) -> tuple[Ends, Ends]:
    """The range that encloses a field's values, by entry; of IPv6 addresses their upper half."""
    wide = flat.family is Family.IPV6 and name in (Field.SOURCE, Field.DESTINATION)
    shift = 64 if wide else 0
    low, high = [0] * len(flat.entries), [_TOP] * len(flat.entries)
    for row, entry in enumerate(flat.entries):
        values = entry.box.get(name)
        if values:
            low[row] = values.ranges[0][0] >> shift
            high[row] = values.ranges[-1][1] >> shift
    return np.array(low, np.uint64), np.array(high, np.uint64)
