"""Attached to a real interface, the program marks packets and leaves everything else alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.layout import AXES, Outcome
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.errors import KernelError
from bpfilter.kernel.addresses import read_local_table
from bpfilter.kernel.attach import AttachKind
from bpfilter.kernel.config import Mode, Reason, Trace
from bpfilter.kernel.observer import Hook, Observer
from bpfilter.kernel.program import Classifier, Options
from bpfilter.ruleset.fields import Family, Field, Intervals, State
from tests.kernel.frames import frame
from tests.kernel.images import chain, image_of
from tests.kernel.network import Network, network

pytestmark = pytest.mark.kernel

SECOND = 1_000_000_000
KINDS = list(AttachKind)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("a") as made:
        yield made


def udp(number: int, port: int = 53, family: Family = Family.IPV4, **other: int) -> bytes:
    """A UDP packet from the peer to the firewall, with this IP ID or flow label."""
    fields = dict.fromkeys(AXES, 0)
    v4 = family is Family.IPV4
    fields |= {
        Field.SOURCE: 0x0A4D0002 if v4 else 0xFD77 << 112 | 2,
        Field.DESTINATION: 0x0A4D0001 if v4 else 0xFD77 << 112 | 1,
        Field.PROTOCOL: 17,
        Field.SOURCE_PORT: 4000,
        Field.DESTINATION_PORT: port,
        Field.LENGTH: 60,
        Field.TTL: 64,
        Field.MAC_SOURCE: 0x020000000002,
    }
    fields |= {Field[name]: value for name, value in other.items()}
    made = bytearray(frame(fields, family, number))
    if not fields[Field.PACKET_TYPE]:
        made[:6] = bytes.fromhex("020000000001")
    if v4:
        made[24:26] = checksum(made[14:34])
    return bytes(made)


def checksum(header: bytes) -> bytes:
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    return (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")


def dns_only(family: Family = Family.IPV4):
    box = {Field.PROTOCOL: Intervals.single(17), Field.DESTINATION_PORT: Intervals.single(53)}
    return chain((box, OpKind.ACCEPT), family=family)


BOTH = image_of(dns_only(), dns_only(Family.IPV6))
ACCEPTED, DROPPED = 1, 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_is_in_the_mark_that_iptables_sees(net: Network, kind: AttachKind) -> None:
    options = Options(mode=Mode.FORCED, marking=DEFAULT_MARK)
    with (
        Classifier.load(BOTH, options) as classifier,
        net.inside(net.firewall),
        Observer.attach([Family.IPV4, Family.IPV6], [Hook.INPUT]) as observer,
    ):
        classifier.attach(net.index, kind)
        net.send(udp(700), udp(701, port=54), udp(702, family=Family.IPV6))
        seen = observer.records()
        for number, code in ((700, ACCEPTED), (701, DROPPED), (702, ACCEPTED)):
            assert seen[number]["before"] == 1
            assert seen[number]["mark_before"] == DEFAULT_MARK.value(code)


def test_only_the_field_of_the_mark_is_written(net: Network) -> None:
    with (
        Classifier.load(BOTH, Options(mode=Mode.FORCED, marking=DEFAULT_MARK)) as classifier,
        net.inside(net.firewall),
        Observer.attach([Family.IPV4], [Hook.INPUT]) as observer,
    ):
        classifier.attach(net.index)
        net.fw("iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--or-mark", "5")
        net.send(udp(1))
        net.fw("iptables-nft", "-t", "mangle", "-F")
        assert observer.records()[1]["mark_before"] == DEFAULT_MARK.value(ACCEPTED) | 5


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_ends_it_and_leaves_nothing(net: Network, kind: AttachKind) -> None:
    with Classifier.load(BOTH, Options(mode=Mode.FORCED)) as classifier, net.inside(net.firewall):
        attachment = classifier.attach(net.index, kind)
        net.send(udp(1))
        attachment.close()
        net.send(udp(1))
        # The kernel's own neighbour discovery may pass as IPv6, in another slot.
        assert classifier.outcomes()[0, Outcome.ACCEPT] == 1
        assert net.fw("tc", "filter", "show", "dev", "fw0", "ingress") == ""
        assert "clsact" not in net.fw("tc", "qdisc", "show", "dev", "fw0")


def test_foreign_filters_stay(net: Network) -> None:
    with (
        Classifier.load(BOTH, Options(mode=Mode.FORCED)) as foreign,
        Classifier.load(BOTH, Options(mode=Mode.FORCED)) as ours,
        net.inside(net.firewall),
        IPRoute() as netlink,
    ):
        netlink.tc("add", "clsact", net.index)
        try:
            netlink.tc("add-filter", "bpf", net.index, handle=1, fd=foreign.fd, name="foreign",
                       parent=0xFFFFFFF2, prio=1, protocol=3, direct_action=True)  # fmt: skip
            before = net.fw("tc", "filter", "show", "dev", "fw0", "ingress")
            for kind in KINDS:
                attachment = ours.attach(net.index, kind)
                net.send(udp(1))
                attachment.close()
            assert net.fw("tc", "filter", "show", "dev", "fw0", "ingress") == before
            accepted = (0, Outcome.ACCEPT)
            assert foreign.outcomes()[accepted] == ours.outcomes()[accepted] == 2
        finally:
            netlink.tc("del", "clsact", net.index)


def test_a_taken_clsact_handle_is_refused(net: Network) -> None:
    with Classifier.load(BOTH, Options(mode=Mode.FORCED)) as one, net.inside(net.firewall):
        one.attach(net.index, AttachKind.CLSACT)
        with pytest.raises(KernelError, match="EEXIST"):
            one.attach(net.index, AttachKind.CLSACT)
        net.send(udp(1))
        assert one.outcomes() == {(0, Outcome.ACCEPT): 1}


def test_an_interface_that_is_not_there_is_named(net: Network) -> None:
    with Classifier.load(BOTH, Options(mode=Mode.FORCED)) as classifier:
        for kind in KINDS:
            with pytest.raises(KernelError, match="9999"):
                classifier.attach(9999, kind)


def test_without_a_lease_everything_is_punted(net: Network) -> None:
    options = Options(mode=Mode.FORCED, leased=True, marking=DEFAULT_MARK)
    with (
        Classifier.load(BOTH, options) as classifier,
        net.inside(net.firewall),
        Observer.attach([Family.IPV4], [Hook.INPUT]) as observer,
    ):
        classifier.attach(net.index)
        now = time.monotonic_ns()
        # The program reads the coarse clock, which lags behind by up to a tick.
        for number, until in enumerate((0, now - SECOND, now + 3600 * SECOND), 10):
            classifier.set_lease(until)
            net.send(udp(number))
            assert observer.records()[number]["mark_before"] == 0
        assert classifier.punts()[Reason.LEASE] >= 3
        classifier.set_lease(time.monotonic_ns() + 30 * SECOND)
        net.send(udp(20))
        assert observer.records()[20]["mark_before"] == DEFAULT_MARK.value(ACCEPTED)


def test_a_lease_ends_by_itself(net: Network) -> None:
    options = Options(mode=Mode.FORCED, leased=True)
    with Classifier.load(BOTH, options) as classifier, net.inside(net.firewall):
        classifier.attach(net.index)
        classifier.set_lease(time.monotonic_ns() + SECOND // 4)
        net.send(udp(1))
        time.sleep(0.4)
        net.send(udp(1))
        assert classifier.punts()[Reason.LEASE] >= 1


@pytest.mark.parametrize(
    "tool", ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"]
)
@pytest.mark.parametrize("built_in", [True, False])
def test_any_edit_of_the_rules_punts_from_the_next_packet_on(
    tool: str, built_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With x_tables in the kernel or read as if it were a module.

    An edit of nf_tables concerns both families, one of a legacy table its own.
    """
    if not built_in:
        monkeypatch.setattr("bpfilter.kernel.options.struct_id", lambda name: 0)
    packets = (udp(1), udp(2, family=Family.IPV6))
    decided = {"iptables-legacy": [1, 2], "ip6tables-legacy": [2, 1]}.get(tool, [1, 1])
    with network("g") as net, net.inside(net.firewall):
        net.fw(tool, "-A", "INPUT", "-p", "tcp", "--dport", "1", "-j", "DROP")
        options = Options(mode=Mode.FORCED, generation=True, trace=Trace.BY_ID)
        with Classifier.load(BOTH, options) as classifier:
            classifier.attach(net.index)
            for edit in (("-R", "INPUT", "1", "-p", "tcp", "--dport", "2", "-j", "DROP"), ("-F",)):
                known = classifier.observe_generation()
                classifier.set_generation(known)
                net.send(*packets)
                assert [classifier.record(n).outcome for n in (1, 2)] == [Outcome.ACCEPT] * 2
                net.fw(tool, *edit)
                assert classifier.observe_generation() != known
                net.send(*packets)
                assert [classifier.record(n).hits for n in (1, 2)] == decided
                assert classifier.punts()[Reason.GENERATION] >= 1
                classifier.clear_records()


def test_a_legacy_table_that_appears_punts() -> None:
    with network("g") as net, net.inside(net.firewall):
        options = Options(mode=Mode.FORCED, generation=True)
        with Classifier.load(BOTH, options) as classifier:
            classifier.attach(net.index)
            classifier.set_generation(classifier.observe_generation())
            net.fw("iptables-legacy", "-L", "-n")
            net.send(udp(1))
            # A router solicitation of the kernel's own may come beside it.
            assert classifier.punts().keys() == {Reason.GENERATION}


def test_live_input_decides_only_unicast_to_local_addresses(net: Network) -> None:
    with net.inside(net.firewall):
        options = Options(
            mode=Mode.LIVE_INPUT, addresses=read_local_table(), trace=Trace.BY_ID,
            interfaces={net.index: "fw0"},
        )  # fmt: skip
        with Classifier.load(BOTH, options) as classifier:
            classifier.attach(net.index)
            here, others = {30: {}}, {
                31: {"DESTINATION": 0x0A4D0007},
                32: {"DESTINATION": 0x0A4D00FF},
                33: {"DESTINATION": 0xFFFFFFFF},
                34: {"DESTINATION": 0xE00000FB},
                35: {"DESTINATION": 0},
            }  # fmt: skip
            for number, other in (here | others).items():
                net.send(udp(number, **other))
            net.send(udp(36, family=Family.IPV6))
            net.send(udp(37, family=Family.IPV6, DESTINATION=0xFF02 << 112 | 1))
            for number in (30, 36):
                assert classifier.record(number).outcome is Outcome.ACCEPT
            for number in (*others, 37):
                assert classifier.record(number).reason is Reason.NOT_LOCAL


def test_frames_for_other_hosts_and_broadcast_frames(net: Network) -> None:
    with (
        Classifier.load(BOTH, Options(mode=Mode.FORCED, trace=Trace.BY_ID)) as classifier,
        net.inside(net.firewall),
    ):
        net.fw("ip", "link", "set", "fw0", "promisc", "on")
        classifier.attach(net.index)
        other = bytearray(udp(40))
        other[:6] = bytes.fromhex("0200000000ff")
        tagged = udp(41)
        tagged = tagged[:12] + bytes.fromhex("81000005") + tagged[12:]
        net.send(bytes(other), tagged, udp(42, PACKET_TYPE=1))
        net.fw("ip", "link", "set", "fw0", "promisc", "off")
        assert classifier.record(42).outcome is Outcome.ACCEPT
        assert classifier.punts() == {Reason.OTHERHOST: 1, Reason.VLAN: 1}


def test_looped_back_multicast_has_no_ethernet_header(net: Network) -> None:
    with (
        Classifier.load(BOTH, Options(mode=Mode.FORCED)) as classifier,
        net.inside(net.firewall),
    ):
        classifier.attach(net.index)
        script = (
            "import socket,struct;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
            "i=socket.inet_aton('10.77.0.1');"
            "s.setsockopt(0,socket.IP_MULTICAST_IF,i);"
            "s.setsockopt(0,socket.IP_ADD_MEMBERSHIP,socket.inet_aton('224.0.0.99')+i);"
            "[s.sendto(b'x',('224.0.0.99',53)) for _ in range(3)]"
        )
        subprocess.run(["python3", "-c", script], check=True)
        time.sleep(0.1)
        assert classifier.punts().get(Reason.OTHERHOST) == 3


def test_the_observer_tells_states_and_survivors(net: Network) -> None:
    rules = """*raw
-A PREROUTING -p udp --dport 9 -j NOTRACK
COMMIT
*filter
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p udp --dport 7 -j DROP
-A INPUT -p udp --dport 8 -j MARK --set-mark 3
COMMIT
"""
    try:
        net.fw("iptables-nft-restore", stdin=rules)
        with net.inside(net.firewall), Observer.attach([Family.IPV4], [Hook.INPUT]) as observer:
            bad = bytearray(udp(53, port=8))
            bad[40:42] = b"\xff\xff"  # a checksum that is wrong
            net.send(udp(50, port=7), udp(51, port=8), udp(52, port=9), bytes(bad))
            seen = observer.records()
            rows = [(int(r["states"]), int(r["before"]), int(r["after"])) for r in seen[50:54]]
            assert rows == [
                (State.NEW, 1, 0),
                (State.NEW, 1, 1),
                (State.UNTRACKED, 1, 1),
                (State.INVALID, 1, 0),
            ]
            assert (seen[51]["mark_before"], seen[51]["mark_after"]) == (0, 3)
            assert seen[51]["length"] == 60
            observer.clear()
            assert not observer.records()["before"].any()
    finally:
        for table in ("raw", "filter"):
            net.fw("iptables-nft", "-t", table, "-F")


def test_two_observers_cannot_watch_one_hook(net: Network) -> None:
    with net.inside(net.firewall), Observer.attach([Family.IPV4], [Hook.INPUT]):
        with pytest.raises(KernelError, match="EBUSY"):
            Observer.attach([Family.IPV4], [Hook.INPUT])
        with Observer.attach([Family.IPV4, Family.IPV6], [Hook.FORWARD, Hook.OUTPUT]):
            pass
