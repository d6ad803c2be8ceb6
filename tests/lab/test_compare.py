"""What counts as agreement between the kernel and the program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.plan import Image
from bpfilter.compiler.walk import function_of, walk
from bpfilter.kernel.config import Reason
from bpfilter.kernel.program import Result
from bpfilter.lab.compare import Agreement, final_counts, judge, same_in_cutover
from bpfilter.lab.conversation import Stimulus
from bpfilter.lab.oracle import Observation
from bpfilter.ruleset.fields import Family, Field, State
from bpfilter.ruleset.model import RuleRef
from bpfilter.ruleset.read import read_text
from tests.lab.test_packets import packet

RULES = """*filter
:INPUT DROP [0:0]
-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p udp -m recent --name seen --rcheck -j ACCEPT
-A INPUT -p icmp -j LOG
-A INPUT -p icmp -j ACCEPT
COMMIT
"""
TCP, UDP, ICMP, GRE = 6, 17, 1, 47


def image() -> Image:
    ruleset = read_text(RULES, family=Family.IPV4)
    return assemble([compile_ruleset(ruleset, (("filter", "INPUT"),))])


IMAGE = image()
SLOT = IMAGE.slots[0]
FLAT = SLOT.plan.flat


def observation(protocol: int, state: State, verdict: str, **changes: Any) -> Observation:
    """A packet as a right program and a kernel with this verdict show it."""
    fields = packet(Family.IPV4, protocol)
    function = function_of(FLAT, fields)
    node = next(n for n, known in SLOT.transitions.functions.items() if known == function)
    final = tuple(walk(FLAT, fields, mask & -mask)[1] for mask in FLAT.state_classes())
    program = Result(Outcome.RESIDUAL, Reason.NONE, 1, SLOT, node, final)
    seen = Observation(
        Stimulus(1, fields, state), program, 1, int(verdict == "ACCEPT"), int(state), 0
    )
    return replace(seen, **changes)


def agreement(seen: Observation) -> Agreement:
    return judge(seen, FLAT, function_of(FLAT, seen.stimulus.packet)).agreement


@pytest.mark.parametrize(
    ("protocol", "state", "verdict", "expected"),
    [
        (TCP, State.ESTABLISHED, "ACCEPT", Agreement.MATCH),
        (TCP, State.ESTABLISHED, "DROP", Agreement.MISMATCH),
        (TCP, State.NEW, "DROP", Agreement.MATCH),
        (TCP, State.NEW, "ACCEPT", Agreement.MISMATCH),
        (UDP, State.NEW, "ACCEPT", Agreement.MATCH),
        (UDP, State.NEW, "DROP", Agreement.MATCH),
        (ICMP, State.NEW, "ACCEPT", Agreement.MATCH),
        (ICMP, State.NEW, "DROP", Agreement.MISMATCH),
    ],
)
def test_the_verdict_must_be_one_that_the_walk_of_the_seen_state_allows(
    protocol: int, state: State, verdict: str, expected: Agreement
) -> None:
    assert agreement(observation(protocol, state, verdict)) is expected


def test_a_packet_that_the_program_never_saw_is_a_mismatch() -> None:
    assert agreement(observation(TCP, State.NEW, "DROP", program=None)) is Agreement.MISMATCH


def test_a_packet_that_never_came_to_filter_is_not_comparable() -> None:
    lost = observation(TCP, State.NEW, "DROP", before=0)
    assert agreement(lost) is Agreement.NOT_COMPARABLE


def test_a_packet_seen_twice_is_not_comparable() -> None:
    twice = observation(TCP, State.NEW, "DROP", before=2)
    assert agreement(twice) is Agreement.NOT_COMPARABLE


def test_a_punted_packet_is_never_wrong() -> None:
    punted = Result(Outcome.PUNT, Reason.FRAGMENT)
    for verdict in ("ACCEPT", "DROP"):
        seen = observation(TCP, State.NEW, verdict, program=punted)
        assert agreement(seen) is Agreement.PUNTED


def test_another_residual_than_that_of_the_tables_is_a_mismatch() -> None:
    seen = observation(GRE, State.NEW, "DROP")
    other = function_of(FLAT, packet(Family.IPV4, TCP))
    assert judge(seen, FLAT, other).agreement is Agreement.MISMATCH


@pytest.mark.parametrize("timely", [False, True])
def test_cutover_must_not_change_a_verdict_that_is_certain(timely: bool) -> None:
    before, after = (observation(ICMP, State.NEW, verdict) for verdict in ("ACCEPT", "DROP"))
    assert same_in_cutover(before, before, FLAT, timely).agreement is Agreement.MATCH
    assert same_in_cutover(before, after, FLAT, timely).agreement is Agreement.MISMATCH


def test_cutover_may_change_what_depends_on_time_and_nothing_else() -> None:
    before, after = (observation(UDP, State.NEW, verdict) for verdict in ("ACCEPT", "DROP"))
    assert same_in_cutover(before, after, FLAT, timely=True).agreement is Agreement.NOT_COMPARABLE
    assert same_in_cutover(before, after, FLAT, timely=False).agreement is Agreement.MISMATCH


def test_cutover_must_not_leave_a_mark_behind() -> None:
    before = observation(ICMP, State.NEW, "ACCEPT")
    marked = replace(before, mark=0x01000000)
    assert same_in_cutover(before, marked, FLAT, timely=False).agreement is Agreement.MISMATCH


def test_another_state_in_the_second_run_must_come_from_a_rule_that_keeps_state() -> None:
    before = observation(TCP, State.NEW, "DROP")
    for after in (observation(TCP, State.ESTABLISHED, "ACCEPT"), replace(before, before=0)):
        for settled, expected in ((False, Agreement.NOT_COMPARABLE), (True, Agreement.MISMATCH)):
            found = same_in_cutover(before, after, FLAT, timely=False, settled=settled)
            assert found.agreement is expected


def test_counters_are_bounded_by_what_is_certain_and_what_may_be() -> None:
    seen = [
        observation(TCP, State.ESTABLISHED, "ACCEPT"),
        observation(ICMP, State.NEW, "ACCEPT"),
        observation(UDP, State.NEW, "DROP"),
    ]
    bounds = final_counts(seen, FLAT)
    established = bounds[RuleRef("filter", "INPUT", 1)]
    echo = bounds[RuleRef("filter", "INPUT", 4)]
    assert (established.certain, established.possible) == (1, 2)
    assert (echo.certain, echo.possible) == (1, 2)
    assert seen[0].stimulus.packet[Field.PROTOCOL] == TCP
