"""FORWARD and NAT on a live router: every answer is the one that plain iptables gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfilter.rollout.journal import Journal
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import entered
from tests.rollout.router import BRIDGE, CLIENT, CONTAINER, ROUTER, Echo, Router

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)

PUBLISHED, LOCAL, BLOCKED, REDIRECTED = 8080, 9001, 9002, 9003
PORTS = (80, LOCAL, BLOCKED, 53)

DOCKER = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -i r0 -p tcp -m tcp --dport 9003 -j REDIRECT --to-ports 9001
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {net} ! -o br0 -j MASQUERADE
-A POSTROUTING -s {container} -d {container} -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination {target}:80
-A DOCKER -p udp -m udp --dport 8080 -j DNAT --to-destination {target}:53
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
:office - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{neighbours}
-A INPUT -i r0 -p {icmp} -j DROP
-A INPUT -p tcp -m tcp --dport 9001 -j ACCEPT
-A INPUT -i br0 -p udp -m udp --dport 53 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br0 -j DOCKER
-A FORWARD -i br0 ! -o br0 -j ACCEPT
-A FORWARD -i br0 -o br0 -j ACCEPT
-A FORWARD -i r0 -o br0 -p tcp -m multiport --dports 9001,9002 -j office
-A DOCKER -d {container} ! -i br0 -o br0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d {container} ! -i br0 -o br0 -p udp -m udp --dport 53 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br0 ! -o br0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br1 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -p tcp -m tcp --dport 7 -j REJECT --reject-with tcp-reset
-A DOCKER-USER -j RETURN
-A office -p tcp -m tcp --dport 9001 -j ACCEPT
COMMIT
"""


def docker(family: Family) -> str:
    """As Docker writes it, with a published port, and rules of an administrator."""
    six = family is Family.IPV6
    return DOCKER.format(
        loopback="::1" if six else "127.0.0.0/8",
        net="fd91:2::/64" if six else "10.91.2.0/24",
        container=CONTAINER[family] + ("/128" if six else "/32"),
        target=f"[{CONTAINER[family]}]" if six else CONTAINER[family],
        icmp="ipv6-icmp" if six else "icmp",
        neighbours="-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT\n"
        "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT"
        if six
        else "-A INPUT -i lo -j ACCEPT",
    )


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as built:
        yield built


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "state") as opened:
        yield opened


Trial = Callable[[float], bool]
TRIED, REFUSED, ANSWERED = 1.0, 0.3, 4.0
"""Seconds to wait for an answer: at first, where none came then, where one came."""


def trials(r: Router, here: Family) -> dict[str, Trial]:
    """What may work between the three hosts, in all directions."""
    there, outside = CONTAINER[here], CLIENT[here]

    def tcp(source: str, address: str, port: int) -> Trial:
        return lambda wait: r.tcp(source, address, port, here, wait)

    def udp(source: str, address: str, port: int) -> Trial:
        return lambda wait: r.udp(source, address, port, here, wait)

    def ping(source: str, address: str) -> Trial:
        return lambda wait: r.ping(source, address, wait)

    return {
        "published tcp": tcp(r.client, ROUTER[here], PUBLISHED),
        "published udp": udp(r.client, ROUTER[here], PUBLISHED),
        "redirected": tcp(r.client, ROUTER[here], REDIRECTED),
        "local": tcp(r.client, ROUTER[here], LOCAL),
        "local blocked": tcp(r.client, ROUTER[here], BLOCKED),
        "local udp from outside": udp(r.client, ROUTER[here], 53),
        "local udp from inside": udp(r.container, BRIDGE[here], 53),
        "routed 80": tcp(r.client, there, 80),
        "routed office": tcp(r.client, there, LOCAL),
        "routed blocked": tcp(r.client, there, BLOCKED),
        "routed reject": tcp(r.client, there, 7),
        "routed udp": udp(r.client, there, 53),
        "routed ping": ping(r.client, there),
        "masqueraded tcp": tcp(r.container, outside, LOCAL),
        "masqueraded udp": udp(r.container, outside, 53),
        "masqueraded ping": ping(r.container, outside),
        "ping the router": ping(r.client, ROUTER[here]),
        "hairpin": tcp(r.container, ROUTER[here], PUBLISHED),
    }


Answers = dict[tuple[Family, str], bool]


def answers(router: Router, expected: Answers | None = None) -> Answers:
    """What does work. Where it is known what should, only surprises are waited for in vain."""
    found: Answers = {}
    for family in Family:
        for name, trial in trials(router, family).items():
            known = None if expected is None else expected[family, name]
            found[family, name] = trial({None: TRIED, True: ANSWERED, False: REFUSED}[known])
    return found


@BACKENDS
def test_a_docker_host_answers_as_with_plain_iptables_in_every_stage(
    router: Router, backend: Backend, journal: Journal
) -> None:
    for family in Family:
        router.restore(backend, family, docker(family))
    request = Request(("r0", "br0"), backend, lease_seconds=50.0)
    with Echo(router.router, PORTS), Echo(router.client, PORTS), Echo(router.container, PORTS):
        plain = answers(router)
        works = {name for (family, name), answer in plain.items() if answer}
        assert works >= {"published tcp", "routed office", "masqueraded ping", "hairpin"}
        assert not plain[Family.IPV4, "ping the router"]
        with entered(router.router):
            rollout = Rollout(request, journal, lambda _line: None)
            prepared = rollout.shadow()
        try:
            assert [chain.chain for _, chain in prepared.chains()] == ["INPUT", "FORWARD"] * 2
            assert answers(router, plain) == plain
            with entered(router.router):
                shadowed = rollout.comparison()
                assert shadowed is not None and shadowed.mismatches == 0 and shadowed.matches
                rollout.enforce()
            assert answers(router, plain) == plain
            with entered(router.router):
                assert rollout.tick() is None
            for family in Family:
                assert router.packets(backend, family, "-j BPF-FORWARD") > 40
                assert router.packets(backend, family, "-j BPF-INPUT") > 10
        finally:
            with entered(router.router):
                rollout.rollback()
        assert answers(router, plain) == plain


@BACKENDS
def test_forwarding_that_is_switched_off_and_on_again(
    router: Router, backend: Backend, journal: Journal
) -> None:
    for family in Family:
        router.restore(backend, family, docker(family))
    request = Request(("r0", "br0"), backend, lease_seconds=50.0)
    routed = trials(router, Family.IPV4)

    def fates(wait: float = REFUSED) -> list[bool]:
        return [routed[name](wait) for name in ("routed office", "routed blocked", "local")]

    with (
        Echo(router.router, PORTS),
        Echo(router.container, PORTS),
        entered(router.router),
        Rollout(request, journal, lambda _line: None) as rollout,
    ):
        rollout.shadow()
        rollout.enforce()
        assert fates(TRIED) == [True, False, True]
        for _ in range(2):
            router.sysctl(router.router, "net.ipv4.ip_forward=0")
            assert fates() == [False, False, True]
            assert rollout.tick() is None
            assert fates() == [False, False, True]
            router.sysctl(router.router, "net.ipv4.ip_forward=1")
            assert fates(TRIED) == [True, False, True]
            assert rollout.tick() is None
            assert fates(TRIED) == [True, False, True]
