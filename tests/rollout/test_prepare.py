"""Plans are made of what is live, and made anew only for the family whose rules changed."""

from __future__ import annotations

import pytest

from bpfilter.errors import LiveReadError
from bpfilter.rollout.prepare import Known, prepare
from bpfilter.rollout.tables import Tables
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, call, entered
from tests.rollout.watched import BACKENDS, load

pytestmark = pytest.mark.kernel


@BACKENDS
def test_an_edit_of_one_family_leaves_the_others_plan(net: Net, backend: Backend) -> None:
    load(net, backend)
    known = Known()
    with entered(net.fw):
        before = prepare(known=known)
        again = prepare(known=known)
        assert again.plans == before.plans
        assert again.fingerprints == before.fingerprints
        call(f"iptables-{backend}", "-I", "INPUT", "-s", "192.0.2.1", "-j", "DROP")
        after = prepare(known=known)
    old, new = before.plans[Family.IPV4].ruleset, after.plans[Family.IPV4].ruleset
    assert new.digest != old.digest
    assert after.plans[Family.IPV6].ruleset is before.plans[Family.IPV6].ruleset


def test_a_host_that_begins_to_forward_gets_forward_planned(net: Net) -> None:
    load(net)
    known = Known()
    with entered(net.fw):
        assert ("filter", "FORWARD") not in prepare(known=known).plans[Family.IPV4].chains
        call("sysctl", "-qw", "net.ipv4.ip_forward=1")
        assert ("filter", "FORWARD") in prepare(known=known).plans[Family.IPV4].chains


def test_native_rules_that_iptables_does_not_print_are_found_beside_the_planning(net: Net) -> None:
    load(net)
    with entered(net.fw):
        prepare()
        call("nft", "add", "set", "ip", "filter", "guests", "{ type ipv4_addr; }")
        call("nft", "insert", "rule", "ip", "filter", "INPUT", "ip", "saddr", "@guests", "accept")
        with pytest.raises(LiveReadError, match="nft"):
            prepare()


def test_a_native_rule_that_comes_between_the_readings_is_found(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """iptables-nft-save shows it wider than it is; what is translated must not rest on that."""
    load(net)
    save = Tables.save

    def disturbed(tables: Tables, *, counters: bool = False) -> str:
        if tables.family is Family.IPV4 and tables.backend is Backend.NFT:
            call("nft", "insert", "rule", "ip", "filter", "INPUT", "ip", "saddr", "@g", "accept")
        return save(tables, counters=counters)

    with entered(net.fw):
        call("nft", "add", "set", "ip", "filter", "g", "{ type ipv4_addr; }")
        monkeypatch.setattr(Tables, "save", disturbed)
        with pytest.raises(LiveReadError, match="nft"):
            prepare()
