"""filter OUTPUT: foretold exactly in shadow, dropped early when deciding, as iptables would."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.kernel.config import Mode, Reason
from bpfilter.kernel.options import Options, Template
from bpfilter.kernel.output import OutputLinks
from bpfilter.kernel.program import Classifier
from bpfilter.kernel.shadow import Shadow, Tally
from bpfilter.kernel.syscall import KernelCallFailed
from bpfilter.rollout.comparison import Comparison, RuleKey
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.request import Request
from bpfilter.rollout.scope import Scope, parse_network
from bpfilter.rollout.stages import Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, RuleRef
from bpfilter.ruleset.read import read_text
from tests.rollout.network import FW4, PEER4, PEER6, Net, call, entered
from tests.rollout.watched import BACKENDS, settled, sound

pytestmark = pytest.mark.kernel

RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:out - [0:0]
-A OUTPUT -p udp -m udp --dport 5001 -j DROP
-A OUTPUT -p udp -m udp --dport 5002 -m conntrack --ctstate NEW -j DROP
-A OUTPUT -p udp -m udp --dport 5003 -j REJECT
-A OUTPUT -p udp -m udp --dport 5004 -m owner --uid-owner 0 -j DROP
-A OUTPUT -o v1 -p udp -m udp --dport 5005:5007 -j out
-A OUTPUT -p udp -m udp --dport 5008 -j LOG
-A OUTPUT -p udp -m udp --dport 5008 -j DROP
-A out -p udp -m udp --dport 5005 -j RETURN
-A out -p udp -m udp --dport 5006 -j DROP
COMMIT
"""
PORTS = range(5000, 5010)
REFUSED = {5001, 5002, 5003, 5004, 5006, 5008}


def load(net: Net, backend: Backend, rules: str = RULES) -> None:
    for family in Family:
        net.iptables(backend, family).restore(rules)


def sent(net: Net, family: Family = Family.IPV4, ports: range = PORTS) -> set[int]:
    """One datagram from the firewall to each port of the peer; the ports that gave EPERM."""
    refused = set()
    for port in ports:
        with net.udp(net.fw, family) as sock:
            try:
                sock.sendto(b"x", (PEER4 if family is Family.IPV4 else PEER6, port))
            except PermissionError as error:
                assert error.errno == errno.EPERM
                refused.add(port)
    return refused


@contextmanager
def rollout(
    net: Net, state: Path, *, lease_seconds: float = 30.0, verify_share: float = 0.0
) -> Iterator[Rollout]:
    request = Request(("v1",), lease_seconds=lease_seconds, verify_share=verify_share)
    with (
        entered(net.fw),
        Journal(state / "state") as journal,
        Rollout(request, journal, lambda _: None) as found,
    ):
        yield found


def pairs(comparison: Comparison | None, chain: str, number: int, family: Family) -> dict[str, int]:
    assert comparison is not None
    counts = comparison.rules[RuleKey(family, RuleRef("filter", chain, number))].counts
    return {f"{said} {was}": count for (said, was), count in counts.items()}


def moved(net: Net, backend: Backend, port: int, family: Family = Family.IPV4) -> int:
    """What iptables itself counted at the rules for a port."""
    return net.iptables(backend, family).packets(rf"-A \S+ .*--dport {port}\b.*-j (DROP|REJECT)")


def compared(rollout: Rollout) -> Comparison:
    def now() -> Comparison:
        found = rollout.comparison()
        assert found is not None
        return found

    return settled(now)


@BACKENDS
def test_shadow_foretells_what_filter_does_to_each_packet(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    load(net, backend)
    with rollout(net, tmp_path) as found:
        found.shadow()
        for family in Family:
            assert sent(net, family) == REFUSED, "as without us"
        comparison = compared(found)
        sound(comparison)
        for family in Family:
            assert pairs(comparison, "OUTPUT", 1, family) == {"DROP DROP": 1}
            assert pairs(comparison, "OUTPUT", 2, family) == {"DROP DROP": 1}
            assert pairs(comparison, "OUTPUT", 3, family) == {"DROP DROP": 1}
            assert pairs(comparison, "out", 2, family) == {"DROP DROP": 1}
            assert pairs(comparison, "OUTPUT", 7, family) == {"DROP DROP": 1}
            accepted = pairs(comparison, "OUTPUT", 0, family)
            assert accepted.get("ACCEPT ACCEPT", 0) >= 4
        for port in (5001, 5002, 5006):
            assert moved(net, backend, port) == 1, "iptables dropped it"


@BACKENDS
def test_enforce_drops_before_iptables_and_the_sender_gets_its_error(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    load(net, backend)
    with rollout(net, tmp_path) as found:
        found.shadow()
        found.enforce()
        for family in Family:
            assert sent(net, family) == REFUSED
            for port in (5001, 5002, 5006):
                assert moved(net, backend, port, family) == 0, "it never came to iptables"
            for port in (5003, 5004, 5008):
                assert moved(net, backend, port, family) == 1, "iptables executes what is dynamic"
        counted = {
            (name.family, name.chain, name.text): bounds.certain
            for name, bounds in found.totals().items()
        }
        assert sum(n for (_, chain, text), n in counted.items() if "5001" in text) == 2
        assert sum(n for (_, chain, text), n in counted.items() if chain == "out") == 2
        found.rollback()
        assert sent(net) == REFUSED
        assert moved(net, backend, 5001) == 1, "iptables alone again"


@BACKENDS
def test_the_connection_state_is_the_packets_own(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    """A reply leaves though what is NEW is dropped: conntrack has seen it before the program."""
    load(net, backend)
    with rollout(net, tmp_path) as found:
        found.shadow()
        found.enforce()
        with net.udp(net.fw, port=5050) as here, net.udp(net.peer, port=5002) as far:
            far.sendto(b"ask", (FW4, 5050))
            _, sender = here.recvfrom(100)
            here.sendto(b"answer", sender)
            assert far.recv(100) == b"answer"
        assert sent(net, ports=range(5002, 5003)) == {5002}


@BACKENDS
def test_a_changed_rule_is_obeyed_by_the_next_packet(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    load(net, backend)
    with rollout(net, tmp_path) as found:
        found.shadow()
        found.enforce()
        assert 5001 in sent(net)
        call(f"iptables-{backend}", "-D", "OUTPUT", "1")
        assert 5001 not in sent(net)
        call(f"iptables-{backend}", "-F", "OUTPUT")
        assert sent(net) == set()
        assert found.tick() is not None
        assert sent(net) == set()


def test_an_ended_lease_leaves_output_to_iptables(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with rollout(net, tmp_path, lease_seconds=0.5) as found:
        found.shadow()
        found.enforce()
        sent(net)
        assert moved(net, Backend.NFT, 5001) == 0
        time.sleep(0.6)
        assert sent(net) == REFUSED
        assert moved(net, Backend.NFT, 5001) == 1


def test_only_the_deployments_interfaces_are_judged(net: Net, tmp_path: Path) -> None:
    """`lo` is not among them: what leaves by it is iptables' own."""
    load(net, Backend.NFT)
    with (
        entered(net.fw),
        Journal(tmp_path / "state") as journal,
        Rollout(Request(("v1",)), journal, lambda _: None) as found,
    ):
        found.shadow()
        found.enforce()
        with net.udp(net.fw) as sock, pytest.raises(PermissionError):
            sock.sendto(b"x", ("127.0.0.1", 5001))
        assert moved(net, Backend.NFT, 5001) == 1


def test_a_canary_decides_in_its_scope_only(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with rollout(net, tmp_path) as found:
        found.shadow()
        found.canary(Scope(sources=(parse_network("192.0.2.0/24"),)))
        assert sent(net) == REFUSED
        assert moved(net, Backend.NFT, 5001) == 1, "from elsewhere"
        found.shadow()
        found.canary(Scope(chains=((Family.IPV4, "filter", "INPUT"),)))
        assert sent(net) == REFUSED
        assert moved(net, Backend.NFT, 5001) == 2, "of another chain"
        found.shadow()
        found.canary(Scope(sources=(parse_network(f"{FW4}/32"),)))
        assert sent(net) == REFUSED
        assert moved(net, Backend.NFT, 5001) == 2, "decided here"


@BACKENDS
def test_sampled_packets_run_the_original_rules_and_are_compared(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    load(net, backend)
    with rollout(net, tmp_path, verify_share=1.0) as found:
        found.shadow()
        found.enforce()
        for family in Family:
            assert sent(net, family) == REFUSED
        assert moved(net, backend, 5001) == 1
        comparison = compared(found)
        sound(comparison)
        assert pairs(comparison, "OUTPUT", 1, Family.IPV4) == {"DROP DROP": 1}


def test_generations_take_turns_at_the_hook(net: Net, tmp_path: Path) -> None:
    """CASES t13: a priority holds one link and links cannot be updated."""
    load(net, Backend.NFT)
    with rollout(net, tmp_path) as found:
        found.shadow()
        found.enforce()
        for port in (5100, 5101, 5102):
            call("iptables-nft", "-I", "OUTPUT", "-p", "udp", "--dport", str(port), "-j", "DROP")
            found.swap()
            assert found.stage is Stage.ENFORCE
            assert port in sent(net, ports=range(5100, 5103))
            assert moved(net, Backend.NFT, port) == 0


@pytest.mark.parametrize("drops", [False, True])
def test_nothing_is_attached_where_nothing_could_be_dropped(
    net: Net, tmp_path: Path, *, drops: bool
) -> None:
    """Two links fit at the hook: whether ours is one shows by how many more do."""
    rules = RULES if drops else RULES.replace("-j DROP", "-j ACCEPT").replace("DROP [", "ACCEPT [")
    load(net, Backend.NFT, rules)
    with rollout(net, tmp_path) as found, another() as one:
        found.shadow()
        found.enforce()
        with closing(OutputLinks(one)):
            if drops:
                with pytest.raises(KernelCallFailed):
                    OutputLinks(one)
            else:
                OutputLinks(one).close()


@contextmanager
def another() -> Iterator[Classifier]:
    """A program for OUTPUT without a lease, in the namespace of the thread."""
    plan = compile_ruleset(read_text(RULES), [("filter", "OUTPUT")])
    options = Options(mode=Mode.LIVE, marking=DEFAULT_MARK, leased=True, template=Template.OUTPUT)
    with Classifier.load(assemble([plan]), options) as one:
        yield one


def test_a_killed_daemon_leaves_output_to_iptables(net: Net) -> None:
    load(net, Backend.NFT)
    with entered(net.fw):
        process = subprocess.Popen(
            [sys.executable, "-c", DAEMON],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert sent(net) == REFUSED
        assert moved(net, Backend.NFT, 5001) == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    end = time.monotonic() + 5
    while moved(net, Backend.NFT, 5001) == 0 and time.monotonic() < end:
        assert sent(net) == REFUSED
    assert moved(net, Backend.NFT, 5001) > 0


DAEMON = f"""
import socket, time
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.kernel.config import Mode
from bpfilter.kernel.options import Options, Template
from bpfilter.kernel.output import OutputLinks
from bpfilter.kernel.program import Classifier
from bpfilter.ruleset.read import read_text
plan = compile_ruleset(read_text({RULES!r}), [("filter", "OUTPUT")])
options = Options(mode=Mode.LIVE, interfaces={{socket.if_nametoindex("v1"): "v1"}},
    marking=DEFAULT_MARK, leased=True, template=Template.OUTPUT)
classifier = Classifier.load(assemble([plan]), options)
links = OutputLinks(classifier)
classifier.set_lease(time.monotonic_ns() + 50 * 10**9)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_third_generation_is_refused_and_leaves_nothing(net: Net) -> None:
    load(net, Backend.NFT)
    with entered(net.fw), another() as one:
        for _ in range(2):
            with (
                closing(OutputLinks(one)),
                closing(OutputLinks(one)),
                pytest.raises(KernelCallFailed, match=r"in use|busy|EBUSY"),
            ):
                OutputLinks(one)


@pytest.mark.parametrize("large", [False, True])
def test_what_is_made_in_odd_ways_is_judged_alike(net: Net, tmp_path: Path, *, large: bool) -> None:
    """Fragments, raw headers, echo requests, TCP: the same fate with and without the program."""
    rules = RULES.replace("-A OUTPUT -p udp -m udp --dport 5001 -j DROP", ODD)
    load(net, Backend.NFT, rules)
    before = oddly(net, large=large)
    with rollout(net, tmp_path) as found:
        found.shadow()
        assert oddly(net, large=large) == before
        comparison = compared(found)
        sound(comparison)
        found.enforce()
        assert oddly(net, large=large) == before


ODD = """-A OUTPUT -p udp -m length --length 1500:65535 -j DROP
-A OUTPUT -p icmp -j DROP
-A OUTPUT -p tcp -m tcp --dport 5001 --tcp-flags SYN,ACK SYN -j DROP
-A OUTPUT -p udp -m udp --dport 5001 -j DROP"""


def oddly(net: Net, *, large: bool) -> list[str]:
    """The fate, as errno names, of packets that are made in unusual ways."""
    fates = []

    def attempt(what: str, kind: int, protocol: int, data: bytes, port: int) -> None:
        with entered(net.fw):
            sock = socket.socket(socket.AF_INET, kind, protocol)
        with sock:
            sock.settimeout(0.3)
            try:
                if kind == socket.SOCK_STREAM:
                    sock.connect((PEER4, port))
                else:
                    sock.sendto(data, (PEER4, port))
                fates.append(f"{what} sent")
            except OSError as error:
                fates.append(f"{what} {errno.errorcode.get(error.errno or 0, 'timeout')}")

    udp = socket.SOCK_DGRAM
    attempt("datagram", udp, 0, bytes(3000 if large else 10), 5000)
    attempt("datagram", udp, 0, bytes(3000 if large else 10), 5001)
    attempt("echo", socket.SOCK_RAW, socket.IPPROTO_ICMP, b"\x08\x00\xf7\xfd\0\1\0\1", 0)
    attempt("connect", socket.SOCK_STREAM, 0, b"", 5001)
    attempt("connect", socket.SOCK_STREAM, 0, b"", 5000)
    for flags in (0, 0x2000, 0x0010):
        packet = raw_udp(5001, flags)
        attempt(f"raw {flags:#x}", socket.SOCK_RAW, socket.IPPROTO_RAW, packet, 0)
    attempt("raw options", socket.SOCK_RAW, socket.IPPROTO_RAW, raw_udp(5001, 0, options=True), 0)
    return fates


def raw_udp(port: int, flags: int, *, options: bool = False) -> bytes:
    head = bytes([0x46 if options else 0x45, 0])
    more = b"\1\1\1\0" if options else b""
    body = (4000).to_bytes(2, "big") + port.to_bytes(2, "big") + b"\0\x0c\0\0data"
    length = (20 + len(more) + len(body)).to_bytes(2, "big")
    addresses = socket.inet_aton(FW4) + socket.inet_aton(PEER4)
    fragment = b"\0\x07" + flags.to_bytes(2, "big")
    return head + length + fragment + b"\x40\x11\0\0" + addresses + more + body


def test_the_links_alone_compare_and_forget_nothing(net: Net) -> None:
    """Every prediction is settled: none waits for a packet that is gone."""
    load(net, Backend.NFT)
    plan = compile_ruleset(read_text(RULES), [("filter", "OUTPUT")])
    with entered(net.fw):
        names = {socket.if_nametoindex("v1"): "v1"}
        options = Options(
            mode=Mode.LIVE,
            interfaces=names,
            leased=True,
            shadow_share=1.0,
            template=Template.OUTPUT,
        )
        with (
            Classifier.load(assemble([plan]), options) as one,
            Shadow.attach(one) as shadow,
            closing(OutputLinks(one)),
        ):
            one.set_lease(time.monotonic_ns() + 10 * 10**9)
            sent(net)
            tally = shadow.tally()
            assert tally[Tally.STORED] >= len(PORTS)
            assert not any(count for name, count in tally.items() if name is not Tally.STORED)
            assert set(one.punts()) <= {Reason.INTERFACE}, "REJECT answers through lo"
