"""What a plan says of the host: what it would write is what is written, and risks are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfilter.report.document import Document
from bpfilter.report.making import make_document
from bpfilter.rollout import ours
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.outlook import outlook
from bpfilter.rollout.stages import Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, call, entered
from tests.rollout.test_management import SSH
from tests.rollout.test_stages import REQUEST, RULES

pytestmark = pytest.mark.kernel
MINE = RULES.format(icmp="-p icmp -j ACCEPT")


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


def planned(net: Net, text: str, **words: Any) -> Document:
    net.iptables(Backend.NFT).restore(text)
    with entered(net.fw):
        source = read_live(Family.IPV4)
        return make_document(source, 0.0, 30.0, host=lambda plan: outlook(plan, **words))


def found(document: Document, subject: str) -> list[tuple[str, str]]:
    findings = document["host"]["findings"]
    return [(each["level"], each["what"]) for each in findings if each["subject"] == subject]


def test_the_dispatch_that_a_plan_shows_is_the_one_that_enforcing_writes(
    net: Net, tmp_path: Path
) -> None:
    host = planned(net, MINE)["host"]
    tables = net.iptables(Backend.NFT)
    with (
        Journal(tmp_path / "state") as journal,
        entered(net.fw),
        Rollout(REQUEST, journal, lambda *_, **__: None) as rollout,
    ):
        rollout.shadow()
        rollout.enforce()
        assert rollout.mark is not None
        assert host["mark"] == f"{rollout.mark.mask:#010x}"
        written = ours.contents(tables.save())
    with entered(net.fw):
        tables.restore(MINE)
        call("iptables-nft-restore", "--noflush", data=host["dispatch"])
        shown = ours.contents(tables.save())
    assert {name: sorted(rules) for name, rules in shown.items()} == {
        name: sorted(rules) for name, rules in written.items()
    }


def test_interfaces_hooks_and_features_are_named(net: Net) -> None:
    host = planned(net, MINE)["host"]
    assert [each["name"] for each in host["interfaces"] if each["attached"]] == ["v1"]
    assert any("TC ingress of v1" in hook["where"] for hook in host["hooks"])
    assert all(each["there"] for each in host["features"])
    assert any("no longer move the original rules' counters" in each for each in host["notices"])


def test_what_a_host_has_that_is_risky_is_found(net: Net) -> None:
    more = ":DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n*security"
    text = MINE.replace("COMMIT\n*security", more)
    document = planned(net, text, operator=(SSH,))
    assert document["host"]["findings"][0]["level"] == "problem"
    assert len(found(document, "your connection")) == 1
    assert "dropped by filter/INPUT/0" in found(document, "your connection")[0][1]
    assert found(document, "Docker")[0][0] == "note"
    assert found(document, "fragments") and not found(document, "NAT")
    nat = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 80 -j REDIRECT\nCOMMIT\n"
    assert found(planned(net, MINE + nat), "NAT")


def test_a_mark_that_is_taken_leaves_no_dispatch_and_is_a_problem(net: Net) -> None:
    taken = "-A INPUT -m mark --mark 0x1 -j ACCEPT\nCOMMIT\n*security"
    document = planned(net, MINE.replace("COMMIT\n*security", taken))
    assert document["host"]["mark"] is None and document["host"]["dispatch"] is None
    assert found(document, "mark")[0][0] == "problem"
