"""Which residual functions (a walk per class of connection states) can packets meet?"""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.outcomes import Outcomes, Relation, Trace
from bpfilter.compiler.ir import Function, Walk
from bpfilter.compiler.plan import ChainPlan


def functions_of(
    relation: Relation, chain: ChainPlan, outcomes: Outcomes, diagrams: Diagrams
) -> tuple[Function, ...]:
    """The functions of all valid packets; `relation` is what becomes of each in each state."""
    masks = chain.tables.state_classes
    views = [_in_state(relation, mask & -mask, diagrams) for mask in masks]
    numbers = {item: index for index, item in enumerate(chain.flat.items)}

    def walk(trace: Trace) -> Walk:
        return Walk(tuple(numbers[item] for item in trace.items), trace.verdict)

    return tuple(
        Function(tuple(zip(masks, map(walk, traces), strict=True)))
        for traces in _joint(views, outcomes, diagrams)
    )


def _in_state(relation: Relation, state: int, diagrams: Diagrams) -> Relation:
    """The function in one state, of valid packets only."""
    held = relation & diagrams.valid & diagrams.states(state)
    return held.exists(diagrams.state_variables)


def _joint(
    views: Sequence[Relation], outcomes: Outcomes, diagrams: Diagrams
) -> list[tuple[Trace, ...]]:
    """All tuples of outcomes, one of each view, that one packet has together."""
    found: list[tuple[tuple[Trace, ...], Packets]] = [((), diagrams.true)]
    for view in views:
        longer: list[tuple[tuple[Trace, ...], Packets]] = []
        for traces, packets in found:
            longer += [((*traces, trace), both) for trace, both in outcomes.split(view & packets)]
        found = longer
    return [traces for traces, _ in found]
