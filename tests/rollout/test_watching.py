"""Every packet's prediction against what iptables did with that packet."""

from __future__ import annotations

import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bpfilter.errors import KernelError
from bpfilter.kernel.config import Reason
from bpfilter.kernel.shadow import PREDICTION, Tally
from bpfilter.kernel.syscall import map_keys, map_lookup
from bpfilter.rollout.comparison import Incomparable, RuleKey, Unseen
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.request import Request
from bpfilter.rollout.stages import Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, RuleRef
from tests.rollout.network import FW4, PEER4, Net, call, entered
from tests.rollout.nfqueue import Queue
from tests.rollout.watched import (
    ACCEPTED,
    BACKENDS,
    DROPPED,
    EITHER,
    load,
    pairs,
    said_and_was,
    sound,
    watched,
)

pytestmark = pytest.mark.kernel
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800


@BACKENDS
def test_every_packet_is_attributed_to_the_rule_that_decides_it(net: Net, backend: Backend) -> None:
    load(net, backend)
    with watched(net) as found:
        for port in (4001, 4002, 4003, 4004):
            net.send(port, 5)
            net.send(port, 5, Family.IPV6)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.share == 1.0
    assert comparison.remembered >= 40
    assert said_and_was(comparison, 4) == {ACCEPTED: 5}
    assert said_and_was(comparison, 6) == {DROPPED: 5}, "REJECT is a drop"
    assert said_and_was(comparison, 0)[DROPPED] == 5
    assert pairs(comparison, 4, Family.IPV6).matches == 5
    assert comparison.incomparable[Incomparable.OPEN] == 10
    assert said_and_was(comparison, 0)[EITHER] == 5, "a dynamic rule accepts in front of the policy"


def test_rules_that_were_exercised_have_the_time_of_their_first_packet(net: Net) -> None:
    load(net)
    with watched(net) as found:
        before = time.time()
        net.send(4001)
        first = pairs(found.comparison(), 4).first_seen
        assert first is not None
        assert before <= first <= time.time()
        net.send(4001)
        comparison = found.comparison()
    assert pairs(comparison, 4).first_seen == first
    assert pairs(comparison, 6).first_seen is None


def test_the_connection_state_is_that_of_the_packet(net: Net) -> None:
    load(net)
    with watched(net) as found, net.udp(net.peer, port=4300) as far:
        far.settimeout(5)
        with net.udp(net.fw) as near:
            for _ in range(3):
                near.sendto(b"x", (PEER4, 4300))
                data, address = far.recvfrom(10)
                far.sendto(data, (FW4, address[1]))
                near.recvfrom(10)
        comparison = found.comparison()
    sound(comparison)
    assert said_and_was(comparison, 1) == {ACCEPTED: 3}


@BACKENDS
@pytest.mark.parametrize("chain", ["raw/PREROUTING", "mangle/PREROUTING", "mangle/INPUT"])
def test_what_is_dropped_earlier_was_never_seen_at_filter(
    net: Net, backend: Backend, chain: str
) -> None:
    """CASES t12: the kernel gives the same reason for all these drops."""
    load(net, backend, dropping(chain))
    with watched(net) as found:
        net.send(4001, 5)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.unseen[Unseen.BEFORE] >= 5
    assert said_and_was(comparison, 4) == {}


@BACKENDS
def test_what_is_dropped_behind_filter_was_accepted_by_it(net: Net, backend: Backend) -> None:
    load(net, backend, dropping("security/INPUT"))
    with watched(net) as found:
        net.send(4001, 5)
        comparison = found.comparison()
    sound(comparison)
    assert said_and_was(comparison, 4) == {ACCEPTED: 5}


def dropping(chain: str) -> str:
    table, name = chain.split("/")
    return f"*{table}\n:{name} ACCEPT [0:0]\n-A {name} -p udp --dport 4001 -j DROP\nCOMMIT\n"


@BACKENDS
def test_a_queue_without_listener_is_no_drop_by_filter(net: Net, backend: Backend) -> None:
    load(net, backend)
    with watched(net) as found:
        net.send(4005, 5)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.unseen[Unseen.QUEUED] == 5


@BACKENDS
def test_what_nat_rewrote_is_not_compared(net: Net, backend: Backend) -> None:
    nat = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport 4006 -j REDIRECT" \
          " --to-ports 4001\nCOMMIT\n"  # fmt: skip
    load(net, backend, nat)
    with watched(net) as found:
        net.send(4006, 5)
        net.send(4001, 5)
        comparison = found.comparison()
        punted = found.classifier.punts()
    sound(comparison)
    assert said_and_was(comparison, 4) == {ACCEPTED: 5}
    translated = comparison.incomparable[Incomparable.TRANSLATED]
    assert translated + punted.get(Reason.RULE, 0) >= 5


def test_what_is_routed_to_the_other_chain_is_not_compared(net: Net) -> None:
    load(net)
    with entered(net.fw):
        Path("/proc/sys/net/ipv4/conf/v1/forwarding").write_text("1")
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("0")
        call("ip", "route", "add", "default", "dev", "v1", "table", "77")
        call("ip", "rule", "add", "pref", "9", "lookup", "local")
        call("ip", "rule", "add", "pref", "5", "iif", "v1", "lookup", "77")
        call("ip", "rule", "del", "pref", "0")
    address = call("ip", "-n", net.fw, "-br", "link", "show", "dev", "v1").split()[2]
    call("ip", "-n", net.peer, "neigh", "add", FW4, "lladdr", address, "dev", "p1")
    with watched(net) as found:
        net.send(4001, 5)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.incomparable[Incomparable.OTHER_CHAIN] == 5


@contextmanager
def packet_socket(net: Net, protocol: int) -> Iterator[socket.socket]:
    with entered(net.fw):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
    with tap:
        tap.bind(("v1", protocol))
        yield tap


@pytest.mark.parametrize("protocol", [ETH_P_ALL, ETH_P_IP])
@pytest.mark.parametrize("port", [4001, 4004])
def test_packet_sockets_that_share_the_packets_hide_nothing(
    net: Net, protocol: int, port: int
) -> None:
    load(net)
    with watched(net) as found, packet_socket(net, protocol):
        net.send(port, 20)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.matches >= 20
    assert sum(comparison.unseen.values()) == 0


@pytest.fixture(scope="module")
def thief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled program that consumes every IPv4 packet."""
    compiled = tmp_path_factory.mktemp("steal") / "steal.bpf.o"
    source = Path(__file__).with_name("steal.bpf.c")
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    call("clang", "-target", "bpf", "-O2", "-g", include, "-c", str(source), "-o", str(compiled))
    return compiled


@contextmanager
def stealing(net: Net, program: Path) -> Iterator[None]:
    """Packets vanish behind the classifier: as by TC's redirects, with no tracepoint of a drop."""
    with entered(net.fw):
        call("tc", "qdisc", "add", "dev", "v1", "clsact")
        filter_ = ["bpf", "direct-action", "object-file", str(program), "section", "tc"]
        call("tc", "filter", "add", "dev", "v1", "ingress", *filter_)
    yield
    with entered(net.fw):
        call("tc", "qdisc", "del", "dev", "v1", "clsact")


def test_an_address_that_is_used_again_is_another_packet(net: Net, thief: Path) -> None:
    """CASES t24: skbs are used again at once; predicted DROP on v1, accepted on lo."""
    load(net)
    with watched(net) as found:
        ports = net.udp(net.fw, port=4004), net.udp(net.fw)
        with stealing(net, thief), ports[0] as here, ports[1] as near:
            for _ in range(10):
                net.send(4004, 30)
                for _ in range(30):
                    near.sendto(b"x", ("127.0.0.1", 4004))
                    here.recvfrom(10)
        reused = found.watch._shadow.tally()[Tally.VANISHED]
        found.watch._shadow.sweep(time.monotonic_ns() + 10**9, 0.0)
        comparison = found.comparison()
    sound(comparison)
    assert reused > 0, "some address was met again, by a packet from v1 or lo"
    assert comparison.unseen[Unseen.VANISHED] >= 300


def test_what_vanishes_makes_room_again(net: Net, thief: Path) -> None:
    load(net)
    with watched(net, room=4) as found:
        with stealing(net, thief), packet_socket(net, ETH_P_IP):  # keys by content: all differ
            net.send(4001, 40)
        keys = map_keys(found.classifier.map_fd("predictions"), 8, 8)
        assert len(keys) == 4
        raw = map_lookup(found.classifier.map_fd("predictions"), keys[0], PREDICTION.itemsize)
        kept = np.frombuffer(raw, PREDICTION)[0]
        assert kept["header"][0] == 0x45
        assert int.from_bytes(kept["header"][22:24].tobytes(), "big") == 4001
        lost = found.comparison().unseen[Unseen.LOST]
        found.watch._shadow.sweep(time.monotonic_ns() + 10**9, 0.0)
        net.send(4001, 3)
        comparison = found.comparison()
    sound(comparison)
    assert lost >= 36 - 4, "no room, and counted"
    assert comparison.unseen[Unseen.LOST] == lost
    assert comparison.unseen[Unseen.VANISHED] >= 4
    assert said_and_was(comparison, 4) == {ACCEPTED: 3}


def test_an_edit_before_filter_is_neither_match_nor_mismatch(net: Net) -> None:
    load(net, tables="*mangle\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 4001 -j NFQUEUE"
         " --queue-num 9\nCOMMIT\n")  # fmt: skip
    with watched(net) as found, entered(net.fw), Queue(9) as held:
        net.send(4001, 3)
        call("iptables-nft", "-I", "INPUT", "-p", "udp", "--dport", "4001", "-j", "DROP")
        held.accept(3)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.incomparable[Incomparable.EDITED] == 3


@BACKENDS
def test_an_edit_while_filter_holds_the_packet_is_neither_match_nor_mismatch(
    net: Net, backend: Backend
) -> None:
    load(net, backend)
    with watched(net) as found, entered(net.fw), Queue(7) as held:
        net.send(4005, 6)
        held.accept(3)
        call(f"iptables-{backend}", "-I", "INPUT", "-p", "udp", "--dport", "4005", "-j", "DROP")
        held.accept(3)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.incomparable[Incomparable.EDITED] == 3
    assert said_and_was(comparison, 7) == {EITHER: 3}


def test_two_generations_overlap_and_a_third_is_refused(net: Net) -> None:
    """CASES t13: a hook and priority holds one link."""
    load(net)
    with watched(net) as first, watched(net) as second:
        first.accept_rules()
        net.send(4001, 5)
        net.send(4004, 5)
        with pytest.raises(KernelError, match="EBUSY"), watched(net):
            pass
        for found in (first, second):
            sound(found.comparison())
            assert said_and_was(found.comparison(), 4) == {ACCEPTED: 5}
            assert found.comparison().matches == 10
    with watched(net) as third:
        net.send(4001)
        assert third.comparison().matches >= 1


def test_a_share_of_the_packets_is_enough(net: Net) -> None:
    load(net)
    with watched(net, shadow_share=0.25) as found:
        for _ in range(4):
            net.send(4001, 100)
        comparison = found.comparison()
    sound(comparison)
    assert comparison.share == 0.25
    assert comparison.predicted >= 400
    assert 50 <= comparison.remembered <= 160


def test_forwarded_packets_are_compared_after_their_ttl_was_lowered(net: Net) -> None:
    net.iptables(Backend.NFT).restore(
        "*filter\n:FORWARD DROP [0:0]\n"
        "-A FORWARD -p udp --dport 4001 -m ttl --ttl-eq 63 -j ACCEPT\nCOMMIT\n"
    )
    with entered(net.fw):
        Path("/proc/sys/net/ipv4/conf/v1/forwarding").write_text("1")
        call("ip", "route", "add", "10.98.0.0/16", "via", PEER4, "dev", "v1")
    call("ip", "-n", net.peer, "route", "add", "10.98.0.0/16", "via", FW4)
    with watched(net, forward=True) as found:
        with net.udp(net.peer) as sender, net.arriving(4001, 5), net.arriving(4002, 5):
            for _ in range(5):
                sender.sendto(b"x", ("10.98.0.1", 4001))
                sender.sendto(b"x", ("10.98.0.1", 4002))
        comparison = found.comparison()
    sound(comparison)
    key = RuleKey(Family.IPV4, RuleRef("filter", "FORWARD", 1))
    assert comparison.rules[key].matches == 5
    assert comparison.matches >= 10


def test_a_killed_process_leaves_no_links(net: Net) -> None:
    load(net)
    child = os.fork()
    if not child:
        with watched(net), watched(net):
            signal.pause()
        os._exit(0)
    try:
        time.sleep(0.1)
        wait_until(lambda: refused(net))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    wait_until(lambda: not refused(net))
    with net.udp(net.fw, port=4001) as server:
        net.send(4001)
        assert server.recvfrom(10)[0] == b"x"


def refused(net: Net) -> bool:
    """Whether two generations are attached already."""
    try:
        with watched(net):
            return False
    except KernelError:
        return True


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@BACKENDS
def test_drops_of_native_nft_beside_filter_are_no_mismatches(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    load(net, backend)
    with (
        entered(net.fw),
        Journal(tmp_path / "state") as journal,
        Rollout(Request(("v1",)), journal, lambda _: None) as rollout,
    ):
        rollout.shadow()
        call("nft", "-f", "-", data=BESIDE)
        assert rollout.tick() is None, "ours and those that were translated are the same"
        net.send(4001, 5)
        comparison = rollout.comparison()
    assert comparison is not None
    sound(comparison)
    assert comparison.incomparable[Incomparable.FOREIGN] == 5


BESIDE = """table inet beside {
 chain c {
  type filter hook input priority 0
  udp dport 4001 drop
 }
}
"""
