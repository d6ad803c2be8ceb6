"""Which residual functions (a walk per class of connection states) can packets meet?"""

from __future__ import annotations

from oxidd.util import BooleanOperator

from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.interpret import VERDICTS, interpret
from bpfilter.analysis.meaning import Conditions
from bpfilter.analysis.outcomes import OutcomeMap, Outcomes, Trace
from bpfilter.compiler.ir import Action, Function, Item, Verdict, Walk
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.model import Ruleset

_TRIED = 8
"""Rules of every action whose packets are tried."""


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


def verdicts_met(
    ruleset: Ruleset, chain: ChainPlan, conditions: Conditions, diagrams: Diagrams
) -> tuple[Function, ...] | None:
    """The functions of a chain without items whose tables tell no states apart, at little cost.

    There is at most one for every verdict that a rule or the policy gives, and it occurs if some
    packet gets that verdict. None if the chain is not of that kind, or if for one of the verdicts
    no such packet is among the few that are tried.
    """
    states = chain.tables.state_classes
    if len(states) != 1 or has_items(chain):
        return None
    hook = (chain.table, chain.chain)
    policy = ruleset.tables[chain.table].chains[chain.chain].policy
    possible = {Verdict.DROP if policy == "DROP" else Verdict.ACCEPT}
    tried = [diagrams.true]
    for action, verdict in VERDICTS.items():
        chosen = [ref for ref, treated in chain.treatments.items() if treated.action is action]
        possible |= {verdict} if chosen else set()
        held = [conditions.of(ruleset.rule(ref)) for ref in chosen[:_TRIED]]
        tried += [*held, *(~packets for packets in held)]
    found: set[Verdict | None] = set()
    for packets in tried:
        example = diagrams.example(packets & diagrams.valid)
        if example is not None and found != possible:
            path = interpret(ruleset, chain.treatments, hook, chain.flat.space, *example)
            found.add(path.verdict)
    if found != possible:
        return None
    return tuple(Function(((states[0], Walk((), verdict)),)) for verdict in sorted(possible))


def has_items(chain: ChainPlan) -> bool:
    return any(treatment.action is Action.ITEM for treatment in chain.treatments.values())


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
