"""Does what the kernel did to a packet agree with what the program says of it? Pure.

A packet agrees if its verdict is one of those that its residual function allows in the connection
state that the kernel gave it. What the program leaves to the original rules is never wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bpfilter.compiler.ir import FlatChain, Function, OpKind, Verdict, Walk
from bpfilter.kernel.config import Reason
from bpfilter.lab.addresses import unroutable
from bpfilter.lab.oracle import Observation
from bpfilter.lab.packets import decidable
from bpfilter.ruleset.model import RuleRef


class Agreement(StrEnum):
    """How a packet's comparison ended."""

    MATCH = "match"
    MISMATCH = "mismatch"
    PUNTED = "punted"
    NOT_COMPARABLE = "not-comparable"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One packet's comparison. `cause`: why not comparable, punted or wrong."""

    agreement: Agreement
    cause: str = ""
    allowed: frozenset[str] = frozenset()


MATCHED = Judgement(Agreement.MATCH)


def judge(observation: Observation, flat: FlatChain, reference: Function) -> Judgement:
    """Compare one observation. `reference`: the function by plain reading of the flat chain."""
    program = observation.program
    if observation.before == 0:
        return Judgement(Agreement.NOT_COMPARABLE, missing_cause(observation, flat))
    state = observation.state
    if state is None:
        return Judgement(Agreement.NOT_COMPARABLE, "seen more than once by the filter chain")
    if program is None:
        return Judgement(Agreement.MISMATCH, "the program did not see the packet")
    shape = observation.stimulus.shape
    if program.code and not decidable(shape, flat.family):
        return Judgement(Agreement.MISMATCH, f"the program decided a packet with {shape}")
    function = program.function
    if function is None or program.code == 0:
        return Judgement(Agreement.PUNTED, punt_cause(program.reason))
    if function != reference:
        return Judgement(Agreement.MISMATCH, "the program's residual is not that of its tables")
    walk = function.by_state()[state]
    allowed = possible_verdicts(walk, flat)
    if allowed is None:
        return Judgement(Agreement.PUNTED, "punted in this connection state")
    if observation.verdict in allowed:
        return MATCHED
    cause = f"iptables: {observation.verdict}, the program: {' or '.join(sorted(allowed))}"
    return Judgement(Agreement.MISMATCH, cause, allowed)


def possible_verdicts(walk: Walk, flat: FlatChain) -> frozenset[str] | None:
    """The verdicts that a walk may end in; None if it is left to the original rules."""
    if walk.verdict is Verdict.PUNT:
        return None
    verdicts = set() if walk.verdict is None else {str(walk.verdict)}
    for item in walk.items:
        verdicts |= flat.items[item].verdicts
    return frozenset(verdicts)


def punt_cause(reason: Reason) -> str:
    """A punt reason in words."""
    return reason.name.lower().replace("_", " ")


def missing_cause(observation: Observation, flat: FlatChain) -> str:
    """Why a packet never came to the filter chain, as far as its fields show."""
    packet = observation.stimulus.packet
    if observation.elsewhere:
        return "came to another chain"
    obstacle = unroutable(packet, flat.family, forwarded=flat.chain == "FORWARD")
    if obstacle is not None:
        return obstacle
    if observation.program is None:
        return "lost before the interface"
    return "taken by raw, mangle, nat or routing"


def same_in_cutover(
    first: Observation, second: Observation, flat: FlatChain, timely: bool, settled: bool = False
) -> Judgement:
    """Compare a packet's fate under the original rules with its fate after cutover.

    `timely`: the chain has rules whose answer depends on what passed before and when; packets that
    such rules may judge either way are comparable only to what their walk allows. `settled`: no
    rule of any table has such answers, so each packet must come as it came before.
    """
    differs = Agreement.MISMATCH if settled else Agreement.NOT_COMPARABLE
    if first.before == 0 and second.before == 0:
        return Judgement(Agreement.NOT_COMPARABLE, missing_cause(first, flat))
    if first.before != second.before:
        return Judgement(differs, "came to the filter chain in one run only")
    if first.states != second.states:
        return Judgement(differs, "another connection state in the second run")
    if first.state is None:
        return Judgement(Agreement.NOT_COMPARABLE, "seen more than once by the filter chain")
    program = second.program
    function = None if program is None else program.function
    walk = None if function is None else function.by_state()[first.state]
    allowed = None if walk is None else possible_verdicts(walk, flat)
    if allowed is not None and second.verdict not in allowed:
        cause = f"after cutover: {second.verdict}, the program: {' or '.join(sorted(allowed))}"
        return Judgement(Agreement.MISMATCH, cause, allowed)
    if timely and (allowed is None or len(allowed) > 1):
        return Judgement(Agreement.NOT_COMPARABLE, "judged by rules that depend on time")
    if first.verdict != second.verdict:
        cause = f"original rules: {first.verdict}, after cutover: {second.verdict}"
        return Judgement(Agreement.MISMATCH, cause, frozenset({first.verdict}))
    marks_fixed = not timely or walk is None or not walk.items
    if first.after and marks_fixed and first.mark != second.mark:
        cause = f"mark behind filter: {first.mark:#x} before, {second.mark:#x} after cutover"
        return Judgement(Agreement.MISMATCH, cause)
    return MATCHED


@dataclass(frozen=True, slots=True)
class CounterBounds:
    """How many packets a rule must and may have judged."""

    certain: int
    possible: int


def final_counts(
    observations: Sequence[Observation], flat: FlatChain
) -> Mapping[RuleRef, CounterBounds]:
    """For every rule that ends walks by a static verdict, its bounds over these packets.

    Packets that the program punts, and those whose items may give a verdict, may have been
    judged by any rule.
    """
    certain: Counter[RuleRef] = Counter()
    unsure = 0
    classes = flat.state_classes()
    for observation in observations:
        program, state = observation.program, observation.state
        if not observation.before:
            continue
        function = None if program is None else program.function
        if program is None or function is None or state is None or not program.final:
            unsure += observation.before
            continue
        walk = function.by_state()[state]
        if walk.verdict in (None, Verdict.PUNT) or _may_end(walk, flat):
            unsure += 1
            continue
        index = next(i for i, mask in enumerate(classes) if mask & state)
        certain[flat.entries[program.final[index]].rule] += 1
    ends = {e.rule for e in flat.entries if e.kind in (OpKind.ACCEPT, OpKind.DROP)}
    rules = {ref for ref in ends if ref.number}
    return {ref: CounterBounds(certain[ref], certain[ref] + unsure) for ref in rules}


def _may_end(walk: Walk, flat: FlatChain) -> bool:
    return any(flat.items[item].verdicts for item in walk.items)
