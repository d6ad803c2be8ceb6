"""Local or forwarded, and by which device: CASES t5, t25, and what changes it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.plan import Image
from bpfilter.kernel.addresses import read_local_table
from bpfilter.kernel.config import Mode, Reason, Trace
from bpfilter.kernel.observer import Hook, Observer
from bpfilter.kernel.program import Classifier, Options
from bpfilter.kernel.routing import Fact, RoutingEvents, host_forwards, read_routing
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.rollout.network import entered
from tests.rollout.router import CLIENT, CONTAINER, ROUTER, Router

pytestmark = pytest.mark.kernel

RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -o br0 -j ACCEPT
COMMIT
"""
SOURCE4, SOURCE6 = CLIENT[Family.IPV4], CLIENT[Family.IPV6]


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with Router() as built:
        for family in Family:
            built.restore(Backend.NFT, family, RULES)
        yield built


def image() -> Image:
    chains = (("filter", "INPUT"), ("filter", "FORWARD"))
    rulesets = [read_text(RULES, source="test", family=family) for family in Family]
    return assemble([compile_ruleset(ruleset, chains) for ruleset in rulesets])


class Bench:
    """The program at r0, and what the hooks saw of the packets it was asked about."""

    def __init__(self, router: Router, classifier: Classifier, observer: Observer) -> None:
        self.router = router
        self.classifier = classifier
        self.observer = observer
        self._number = 0
        text = router.ip(router.router, "-o", "link", "show", "r0")
        self.hardware = bytes.fromhex(text.split("link/ether ")[1].split()[0].replace(":", ""))
        with entered(router.client):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind(("c0", 0))

    def close(self) -> None:
        self._socket.close()

    def send(self, packet: bytes, hardware: bytes | None = None) -> None:
        kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
        self._socket.send((hardware or self.hardware) + b"\x02\0\0\0\0\x09" + kind + packet)

    def ask(
        self,
        destination: str,
        source: str = "",
        *,
        ttl: int = 64,
        size: int = 0,
        ports: tuple[int, int] = (1000, 2000),
        hardware: bytes | None = None,
    ) -> tuple[Reason, str, str, bool]:
        """What the program said: reason and chain; what the kernel did: chain and survival."""
        self._number += 1
        number = self._number
        self.send(udp(destination, source, number, ttl, size, ports), hardware)
        found = self.classifier.record(number)
        assert found is not None
        chain = "" if found.slot is None else found.slot.plan.chain
        seen = self.observer.records()[number]
        actual = Hook(int(seen["hook"])).name if seen["before"] else ""
        if not found.reason and actual == chain:
            assert (found.outcome is Outcome.ACCEPT) == bool(seen["after"])
        return found.reason, chain, actual, bool(seen["after"])


def udp(
    destination: str, source: str, number: int, ttl: int, size: int, ports: tuple[int, int]
) -> bytes:
    body = struct.pack("!4H", *ports, 8 + size, 0) + bytes(size)
    if ":" in destination:
        head = struct.pack("!IHBB", 6 << 28 | number, len(body), 17, ttl)
        ends = (
            socket.inet_pton(socket.AF_INET6, text) for text in (source or SOURCE6, destination)
        )
        return head + b"".join(ends) + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0, ttl, 17, 0)
    head += socket.inet_aton(source or SOURCE4) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    check = ~(total + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", check) + head[12:] + body


@contextmanager
def bench(router: Router) -> Iterator[Bench]:
    """Loaded with the routing of now."""
    with entered(router.router):
        options = Options(
            mode=Mode.LIVE,
            routing=read_routing(),
            addresses=read_local_table(),
            trace=Trace.BY_ID,
        )
        observer = Observer.attach(Family, (Hook.INPUT, Hook.FORWARD))
        classifier = Classifier.load(image(), options)
        classifier.attach(socket.if_nametoindex("r0"))
    made = Bench(router, classifier, observer)
    try:
        yield made
    finally:
        made.close()
        classifier.close()
        observer.close()


INPUT, FORWARD = (Reason.NONE, "INPUT"), (Reason.NONE, "FORWARD")
PUNT = (Reason.ROUTE, "")
UNSETTLED = ("255.255.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.251", "10.91.1.255", "10.92.1.1",
             "10.92.2.1", "10.92.3.1", "10.92.4.1", "198.51.100.1")  # fmt: skip


def test_what_the_route_does_not_settle_is_left_to_iptables(router: Router) -> None:
    for kind, prefix in (("unreachable", "10.92.1"), ("prohibit", "10.92.2"),
                         ("blackhole", "10.92.3"), ("throw", "10.92.4")):  # fmt: skip
        router.ip(router.router, "route", "replace", kind, f"{prefix}.0/24")
    broadcast = b"\xff" * 6
    with bench(router) as b:
        assert b.ask(ROUTER[Family.IPV4])[:3] == (*INPUT, "INPUT")
        assert b.ask(CONTAINER[Family.IPV4]) == (*FORWARD, "FORWARD", True)
        assert b.ask("10.91.1.9") == (*FORWARD, "FORWARD", False)
        for destination in UNSETTLED:
            assert b.ask(destination)[:2] == PUNT, destination
        assert b.ask("255.255.255.255", "0.0.0.0", hardware=broadcast)[:3] == (*PUNT, "INPUT")
        assert b.ask("10.91.1.255", hardware=broadcast)[:3] == (*PUNT, "INPUT")
        assert b.ask(CONTAINER[Family.IPV4], hardware=broadcast)[:3] == (*PUNT, "")
        assert b.ask(CONTAINER[Family.IPV4], ttl=1)[:3] == (Reason.TTL, "", "")
        assert b.ask(CONTAINER[Family.IPV6]) == (*FORWARD, "FORWARD", True)
        assert b.ask(ROUTER[Family.IPV6])[:3] == (*INPUT, "INPUT")
        assert b.ask(CONTAINER[Family.IPV6], "fe80::9")[:3] == (*PUNT, "")
        for destination in ("ff02::1", "fe80::1", "2001:db8::1"):
            assert b.ask(destination)[:2] == PUNT, destination


def test_a_decision_about_a_packet_that_dies_before_forward_harms_nothing(router: Router) -> None:
    with bench(router) as b:
        assert b.ask(CONTAINER[Family.IPV4], "127.0.0.1")[2:] == ("", False)
        assert b.ask(CONTAINER[Family.IPV4], "10.91.2.7")[2] in ("", "FORWARD")


def test_what_exceeds_the_out_devices_mtu_is_left_to_iptables(router: Router) -> None:
    router.ip(router.router, "link", "set", "br0", "mtu", "1300")
    try:
        with bench(router) as b:
            assert b.ask(CONTAINER[Family.IPV4], size=1240)[:2] == FORWARD
            assert b.ask(CONTAINER[Family.IPV4], size=1400)[:2] == PUNT
    finally:
        router.ip(router.router, "link", "set", "br0", "mtu", "1500")


def test_forwarding_counts_per_device_in_ipv4_and_per_host_in_ipv6(router: Router) -> None:
    here = router.router
    forwarding6 = "net.ipv6.conf.all.forwarding"
    try:
        router.sysctl(here, "net.ipv4.ip_forward=0", f"{forwarding6}=0")
        with entered(here):
            assert not any(host_forwards(family) for family in Family)
        with bench(router) as b:
            assert b.ask(CONTAINER[Family.IPV4])[:3] == (*PUNT, "")
            assert b.ask(CONTAINER[Family.IPV6])[:3] == (*PUNT, "")
        router.sysctl(here, "net.ipv4.conf.r0.forwarding=1")
        with entered(here):
            assert host_forwards(Family.IPV4)
        with bench(router) as b:
            assert b.ask(CONTAINER[Family.IPV4]) == (*FORWARD, "FORWARD", True)
        router.sysctl(here, "net.ipv6.conf.r0.force_forwarding=1")
        with bench(router) as b:
            assert b.ask(CONTAINER[Family.IPV6])[:3] == (*PUNT, "FORWARD")
    finally:
        router.sysctl(here, "net.ipv4.ip_forward=1", f"{forwarding6}=1",
                      "net.ipv6.conf.r0.force_forwarding=0")  # fmt: skip


def test_changes_of_devices_and_routes_are_noticed(router: Router) -> None:
    with bench(router) as b, entered(router.router):
        events = RoutingEvents()
        before = read_routing()
        assert not events.changed()
        router.ip(router.router, "link", "add", "r9", "type", "veth", "peer", "name", "q9")
        router.ip(router.router, "link", "set", "r9", "up")
        router.ip(router.router, "route", "add", "10.93.0.0/24", "dev", "r9")
        assert b.ask("10.93.0.1")[:2] == (Reason.INTERFACE, "")
        assert events.changed() and not events.changed()
        now = read_routing()
        b.classifier.set_routing(before, now)
        assert b.ask("10.93.0.1")[:2] == FORWARD
        router.ip(router.router, "link", "del", "r9")
        assert events.changed()
        b.classifier.set_routing(now, before)
        assert read_routing().devices == before.devices
        router.sysctl(router.router, "net.ipv4.conf.r0.forwarding=0")
        assert events.changed()
        router.sysctl(router.router, "net.ipv4.conf.r0.forwarding=1",
                      "net.ipv4.fib_multipath_hash_policy=1")  # fmt: skip
        assert events.changed()
        router.sysctl(router.router, "net.ipv4.fib_multipath_hash_policy=0")
        events.close()


@pytest.mark.parametrize("rule", ["fwmark 7", "tos 0x10", "ipproto tcp", "uidrange 0-7"])
def test_rules_that_the_helper_knows_nothing_of_leave_forward_to_iptables(
    router: Router, rule: str
) -> None:
    words = ("rule", "add", *rule.split(), "table", "77", "priority", "777")
    router.ip(router.router, *words)
    try:
        with bench(router) as b, entered(router.router):
            assert "777" in read_routing().untrusted[Family.IPV4]
            assert b.ask(CONTAINER[Family.IPV4])[:2] == PUNT
            assert b.ask(CONTAINER[Family.IPV6])[:2] == FORWARD
            assert b.ask(ROUTER[Family.IPV4])[:2] == INPUT
    finally:
        router.ip(router.router, "rule", "del", "priority", "777")


def test_a_rule_by_in_interface_is_obeyed(router: Router) -> None:
    router.ip(router.router, "rule", "add", "iif", "r0", "table", "78", "priority", "778")
    router.ip(router.router, "route", "add", "10.94.0.0/24", "dev", "br0", "table", "78")
    try:
        with bench(router) as b:
            assert b.ask("10.94.0.1") == (*FORWARD, "FORWARD", True)
    finally:
        router.ip(router.router, "rule", "del", "priority", "778")


@pytest.mark.parametrize("policy", [0, 1, 2])
def test_one_of_several_paths_is_foretold_exactly_or_not_at_all(
    router: Router, policy: int
) -> None:
    here = router.router
    router.link("r2", router.container, "eth2")
    for name, device in ((here, "r2"), (router.container, "eth2")):
        router.ip(name, "link", "set", device, "up")
    router.ip(here, "addr", "add", "10.95.0.1/24", "dev", "r2")
    router.ip(here, "-6", "addr", "add", "fd91:5::1/64", "dev", "r2", "nodad")
    router.ip(here, "route", "add", "10.96.0.0/24", "nexthop", "via", "10.91.2.2", "dev", "br0",
              "nexthop", "via", "10.95.0.2", "dev", "r2")  # fmt: skip
    router.ip(here, "-6", "route", "add", "fd91:6::/64", "nexthop", "via", "fd91:2::2", "dev",
              "br0", "nexthop", "via", "fd91:5::2", "dev", "r2")  # fmt: skip
    for version in ("ipv4", "ipv6"):
        router.sysctl(here, f"net.{version}.fib_multipath_hash_policy={policy}")
    try:
        with bench(router) as b:
            kinds = {b.classifier.options.routing.devices[i].facts[Family.IPV4]
                     for i in b.classifier.options.routing.devices}  # fmt: skip
            how = {0: Fact.BY_ADDRESSES, 1: Fact.BY_PORTS, 2: Fact(0)}[policy]
            assert Fact.FORWARDS | Fact.SEVERAL | how in kinds
            for prefix in ("10.96.0.", "fd91:6::"):
                # `ask` itself compares each verdict, which tells the devices apart.
                asked = [b.ask(f"{prefix}{n}", ports=(n, 3 * n)) for n in range(1, 61)]
                assert {found[:2] for found in asked} == {PUNT if policy == 2 else FORWARD}
                assert {found[2:] for found in asked} == {("FORWARD", True), ("FORWARD", False)}
    finally:
        router.ip(here, "-6", "route", "flush", "fd91:6::/64")
        router.ip(here, "link", "del", "r2")
        for version in ("ipv4", "ipv6"):
            router.sysctl(here, f"net.{version}.fib_multipath_hash_policy=0")
