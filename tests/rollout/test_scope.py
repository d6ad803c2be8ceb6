"""What a canary takes, said, kept in the journal and read back."""

from __future__ import annotations

import json
from ipaddress import ip_network

import pytest

from bpfilter.errors import UsageError
from bpfilter.rollout.scope import Scope, parse_chain, parse_network
from bpfilter.ruleset.fields import Family

NARROW = Scope(
    ("v1",),
    (ip_network("10.1.0.0/16"), ip_network("fd00::/8")),
    0.25,
    ((Family.IPV6, "filter", "INPUT"),),
)


def test_a_scope_survives_the_journal() -> None:
    assert Scope.of(json.loads(json.dumps(NARROW.document()))) == NARROW
    assert Scope.of(Scope().document()).everything


def test_a_scope_says_what_it_takes() -> None:
    assert str(Scope()) == "everything"
    assert str(NARROW) == ("25% of the flows from 10.1.0.0/16, fd00::/8 at v1 in ipv6:filter/INPUT")


def test_even_the_smallest_share_takes_some_flows_and_a_whole_one_all() -> None:
    assert Scope(share=1e-9).threshold == 1
    assert Scope(share=0.5).threshold == 32768
    assert Scope().threshold == 0


def test_a_canary_decides_at_interfaces_of_the_deployment_only() -> None:
    assert NARROW.attached(("v0", "v1")) == ("v1",)
    assert Scope().attached(("v0", "v1")) == ("v0", "v1")
    with pytest.raises(UsageError, match="v1 is not among"):
        NARROW.attached(("v0",))


def test_chains_are_taken_by_family() -> None:
    assert NARROW.takes(Family.IPV6, "filter", "INPUT")
    assert not NARROW.takes(Family.IPV4, "filter", "INPUT")
    assert Scope().takes(Family.IPV4, "filter", "FORWARD")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(UsageError):
        Scope(share=share)


def test_networks_and_chains_are_read_from_words() -> None:
    assert parse_network("10.0.0.1") == ip_network("10.0.0.1/32")
    assert parse_chain("ipv4:filter/INPUT") == (Family.IPV4, "filter", "INPUT")
    for parse, text in ((parse_network, "10.0.0.1/8"), (parse_chain, "filter/INPUT")):
        with pytest.raises(UsageError):
            parse(text)
