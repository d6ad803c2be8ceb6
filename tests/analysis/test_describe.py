"""Packets and counterexamples in words."""

from __future__ import annotations

import pytest

from bpfilter.analysis.describe import describe_counterexample, describe_packet
from bpfilter.analysis.equivalence import Counterexample
from bpfilter.analysis.outcomes import Trace
from bpfilter.compiler.ir import Item, ItemKind, Space, Verdict
from bpfilter.ruleset.fields import Family, Field
from bpfilter.ruleset.model import RuleRef

SPACE = Space(Family.IPV4, ("", "eth0"))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (Field.SOURCE, 0x0A000001, "source 10.0.0.1"),
        (Field.IN_INTERFACE, 1, "in-interface eth0"),
        (Field.MAC_SOURCE, 0x020000000001, "mac-source 02:00:00:00:00:01"),
        (Field.ICMP_TYPE, 0x0301, "icmp-type 3/1"),
        (Field.TCP_FLAGS, 2, "tcp-flags 0x02"),
        (Field.DESTINATION_TYPE, 2, "destination-type LOCAL"),
        (Field.DESTINATION_PORT, 22, "destination-port 22"),
    ],
)
def test_a_field_is_written_as_people_write_it(field: Field, value: int, words: str) -> None:
    assert describe_packet({field: value}, SPACE) == words


def test_ipv6_addresses_are_written_short() -> None:
    assert describe_packet({Field.SOURCE: 1}, Space(Family.IPV6)) == "source ::1"


def test_fields_that_are_zero_are_left_out() -> None:
    assert describe_packet({Field.TTL: 0}, SPACE) == "a packet with all fields zero"


def test_a_counterexample_says_what_both_sides_make_of_the_packet() -> None:
    log = Item(RuleRef("filter", "INPUT", 3), ItemKind.RULE, False, frozenset(), "target LOG")
    rules = Trace((log,), Verdict.DROP)
    example = Counterexample({Field.PROTOCOL: 6}, 1, rules, Trace((), Verdict.ACCEPT))
    assert describe_counterexample(example, SPACE) == (
        "protocol 6, in state NEW: by the rules filter/INPUT/3 → DROP, by the tables ACCEPT"
    )
