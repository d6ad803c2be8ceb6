"""What happens to the host is told at once, ends what rests on it, and interfaces are followed."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpfilter.errors import RolloutError
from bpfilter.rollout.interfaces import AUTO, changed, resolve, survey
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.trouble import Cause
from bpfilter.rollout.watch import Event, Kind, Watcher
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, call, entered
from tests.rollout.serving import REQUEST, reached, served, until
from tests.rollout.test_service import ENFORCE, kinds
from tests.rollout.test_stages import FATES, load, outcome

pytestmark = pytest.mark.kernel


def told(watcher: Watcher, kind: Kind, index: int = 0) -> Event:
    """Wait for an event of a kind, of this interface if one is named."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for event in watcher.drain():
            if event.kind is kind and index in (0, event.index):
                return event
        time.sleep(0.005)
    raise AssertionError(f"no {kind} event")


def test_every_kind_of_change_is_told(net: Net) -> None:
    with entered(net.fw), Watcher() as watcher:
        index = resolve(["v1"])["v1"]
        watcher.watch([index])
        assert watcher.drain() == ()
        changes = {
            Kind.ADDRESS: "ip addr add 10.99.1.77/32 dev v1",
            Kind.RULE: "ip rule add fwmark 0x1 table 100",
            Kind.TC: "tc qdisc add dev v1 clsact",
            Kind.NFT: "nft add table ip theirs",
            Kind.LINK: "ip link add br9 type bridge",
        }
        for kind, command in changes.items():
            call(*command.split())
            assert select.select(watcher.files, [], [], 0)[0] or kind is Kind.TC
            told(watcher, kind)
        call("ip", "link", "set", "v1", "master", "br9")
        event = told(watcher, Kind.LINK, index)
        assert event.concerns([index])
        assert event.name == "v1"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ip addr add fd99::9/64 dev v1 nodad", Kind.ADDRESS),
        ("ip -6 rule add fwmark 5 lookup 9", Kind.RULE),
        ("ip link set v1 alias uplink", Kind.LINK),
    ],
)
def test_ipv6_and_small_changes_are_told_too(net: Net, command: str, kind: Kind) -> None:
    with entered(net.fw), Watcher() as watcher:
        call(*command.split())
        told(watcher, kind)


def test_a_flood_of_messages_loses_no_kind(net: Net) -> None:
    """What the kernel has no room for it says to have lost: then anything may have changed."""
    with entered(net.fw), Watcher() as watcher:
        lines = "\n".join(f"addr add 10.77.{n >> 8}.{n & 255}/32 dev v1" for n in range(8000))
        call("ip", "-batch", "-", data=lines)
        call("ip", "rule", "add", "fwmark", "5", "lookup", "9")
        found = {event.kind for event in watcher.drain()}
        assert {Kind.ADDRESS, Kind.RULE} <= found
        assert watcher.drain() == ()


def test_routes_of_other_tables_are_not_told(net: Net) -> None:
    with entered(net.fw), Watcher() as watcher:
        call("ip", "route", "add", "192.0.2.0/24", "via", "10.99.1.2", "onlink", "dev", "v1")
        assert not [event for event in watcher.drain() if event.kind is Kind.ADDRESS]
        call("ip", "route", "add", "local", "192.0.2.9/32", "dev", "v1")
        told(watcher, Kind.ADDRESS)


def test_interfaces_are_planned_with_their_reasons(net: Net) -> None:
    made = {
        "br0": "bridge", "vx0": "vxlan id 7 dstport 4789 local 10.99.1.1", "ifb0": "ifb",
        "va": "veth peer name vb", "low": "veth peer name far",
    }  # fmt: skip
    with entered(net.fw):
        for name, kind in made.items():
            call("ip", "link", "add", name, "type", *kind.split())
        call("ip", "link", "add", "mv0", "link", "low", "type", "macvlan")
        call("ip", "tuntap", "add", "tap0", "mode", "tap")
        call("ip", "tuntap", "add", "tun0", "mode", "tun")
        call("ip", "link", "set", "va", "master", "br0")
        for name in (*made, "mv0", "tap0", "tun0", "vb", "far"):
            call("ip", "link", "set", name, "up")
        found = {each.name: each for each in survey()}
        taken = {name for name, each in found.items() if each.automatic}
        assert {"v1", "br0", "vx0", "ifb0", "vb", "far", "mv0", "tap0"} <= taken
        assert "attach the master" in found["va"].why
        assert "mv0 (macvlan) is stacked on low" in found["low"].why
        assert "not an Ethernet" in found["tun0"].why and "not an Ethernet" in found["lo"].why
        assert set(resolve([AUTO])) == taken
        assert set(resolve(["v[a-b1]"])) == {"v1", "vb"}
        with pytest.raises(RolloutError, match="va has a master"):
            resolve(["va"])
        with pytest.raises(RolloutError, match="no interface eth9"):
            resolve(["eth9"])
        with pytest.raises(RolloutError, match="no interface to attach"):
            resolve(["eth*"])
        assert changed(["v1"], Scope(), {"v1": 1}) is None
        trouble = changed(["v[a-b1]"], Scope(), resolve(["v1"]))
        assert trouble is not None and trouble.cause is Cause.LINKS and "+vb" in trouble


FOREIGN = {
    "a rename": ("ip", "link", "set", "v1", "name", "wan9"),
    "a bridge": ("ip", "link", "add", "br9", "type", "bridge"),
    "a macvlan on it": ("ip", "link", "add", "mv9", "link", "v1", "type", "macvlan"),
    "a rule for the mark": ("ip", "rule", "add", "fwmark", "0/0xffffffff", "table", "100"),
    "an IPsec policy for the mark": (
        "ip", "xfrm", "policy", "add", "src", "192.0.2.0/24", "dst", "192.0.2.0/24", "dir", "in",
        "mark", "0xff000000", "mask", "0xff000000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", FOREIGN)
def test_the_lease_is_revoked_when_the_host_changes(
    net: Net, change: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    load(net, Backend.NFT)
    took = []

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        yield
        assert Cause.HOST not in kinds(tmp_path)
        call("ip", "netns", "exec", net.fw, *FOREIGN[change])
        began = time.monotonic()
        yield from until(lambda: Cause.HOST in kinds(tmp_path))
        took.append(time.monotonic() - began)

    ending = served(net, tmp_path, ENFORCE, script)
    record_property("milliseconds", round(took[0] * 1000))
    print(f"\n{change}: {took[0] * 1000:.0f} ms")
    assert any("lease revoked" in line for line in ending[1])


def test_interfaces_that_come_and_go_are_followed(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)

    def interfaces(journal: Journal) -> set[str]:
        return set((journal.document("status") or {}).get("interfaces", ()))

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        call("ip", "-n", net.fw, "link", "add", "v2", "type", "veth", "peer", "name", "x2")
        yield from until(lambda: interfaces(journal) == {"v1", "v2"})
        assert "-i v2 -m mark" in tables.save()
        assert outcome(net, tables) == (FATES, 0)
        call("ip", "-n", net.fw, "link", "set", "v2", "name", "other")
        yield from until(lambda: interfaces(journal) == {"v1"})
        assert "-i v2" not in tables.save()
        assert journal.stage is Stage.ENFORCE
        assert outcome(net, tables) == (FATES, 0)

    request = replace(REQUEST, interfaces=("v[0-9]*",))
    served(net, tmp_path, ENFORCE, script, request)
