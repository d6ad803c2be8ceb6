"""Which residual functions (a walk per class of connection states) can packets meet?"""

from __future__ import annotations

from oxidd.util import BooleanOperator

from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.outcomes import OutcomeMap, Outcomes, Trace
from bpfilter.compiler.ir import Function, Item, Walk
from bpfilter.compiler.plan import ChainPlan


def functions_of(
    outcome: OutcomeMap, chain: ChainPlan, outcomes: Outcomes, diagrams: Diagrams
) -> tuple[Function, ...]:
    """The functions of all valid packets; `outcome` is what becomes of each in each state."""
    masks = chain.tables.state_classes
    numbers = {item: index for index, item in enumerate(chain.flat.items)}
    found: list[tuple[tuple[Trace, ...], Packets]] = [((), _valid(diagrams))]
    for mask in masks:
        view = _in_state(outcome, mask & -mask, diagrams)
        found = [
            ((*traces, trace), both)
            for traces, packets in found
            for trace, both in outcomes.split(view, packets)
        ]
    walks = [[_walk(trace, numbers) for trace in traces] for traces, _ in found]
    return tuple(Function(tuple(zip(masks, row, strict=True))) for row in walks)


def _walk(trace: Trace, numbers: dict[Item, int]) -> Walk:
    return Walk(tuple(numbers[item] for item in trace.items), trace.verdict)


def _in_state(outcome: OutcomeMap, state: int, diagrams: Diagrams) -> OutcomeMap:
    """The map in one state, over packets alone."""
    states, variables = diagrams.states(state), diagrams.state_variables

    def view(diagram: Packets) -> Packets:
        return diagram.apply_exists(BooleanOperator.AND, states, variables)

    return OutcomeMap(view(outcome.high), view(outcome.low), view(outcome.items))


def _valid(diagrams: Diagrams) -> Packets:
    return diagrams.valid.exists(diagrams.state_variables)
