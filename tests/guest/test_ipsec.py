"""IPsec: what is decrypted re-enters INPUT under the same interface, without passing TC.

CASES, "QEMU 6.1": ESP in transport mode with our jump at rule 1 and with an accepting rule above
it, and in tunnel mode. States that are there already are refused; here they come while enforcing,
before the daemon looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from bpfilter.errors import RolloutError
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import FW4, PEER4, Case, compare, rules
from tests.cases.enforcing import enforcing
from tests.rollout.network import call, entered

pytestmark = [pytest.mark.kernel, pytest.mark.guest("6.12")]
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
ESP = "-A INPUT -i v1 -p esp -j ACCEPT"
PORT = "-A INPUT -i v1 -p udp -m udp --dport 5000 -j ACCEPT"
INSIDE_FW, INSIDE_PEER = "10.96.1.1", "10.96.1.2"
_KEY = "0x" + "11" * 20


def protect(case: Case, mode: str) -> None:
    """IPsec from the peer to the firewall; `tunnel` carries the inside addresses."""
    ends = {"transport": (PEER4, FW4), "tunnel": (INSIDE_PEER, INSIDE_FW)}[mode]
    for name, direction in ((case.peer, "out"), (case.fw, "in")):
        call("ip", "-n", name, "xfrm", "state", "add", "src", PEER4, "dst", FW4, "proto", "esp",
             "spi", "0x100", "reqid", "1", "mode", mode, "auth", "hmac(sha1)", _KEY,
             "enc", "ecb(cipher_null)", "")  # fmt: skip
        call("ip", "-n", name, "xfrm", "policy", "add", "src", ends[0], "dst", ends[1],
             "dir", direction, "tmpl", "src", PEER4, "dst", FW4, "proto", "esp", "reqid", "1",
             "mode", mode)  # fmt: skip
    if mode == "tunnel":
        call("ip", "-n", case.fw, "addr", "add", f"{INSIDE_FW}/32", "dev", "lo")
        call("ip", "-n", case.peer, "addr", "add", f"{INSIDE_PEER}/32", "dev", "lo")
        call("ip", "-n", case.peer, "route", "add", INSIDE_FW, "dev", "p1", "src", INSIDE_PEER)


def through(case: Case, port: int, target: str = FW4) -> int:
    """How many of the two packets that a protected datagram is pass filter: outer and inner."""
    before, survived = case.counted()
    with case.udp(case.peer) as sock:
        sock.sendto(b"x", (target, port))
    for _ in range(200):
        if case.counted()[0] >= before + 2:
            arrived, survivors = case.counted()
            assert arrived == before + 2, "other traffic got in between"
            return survivors - survived
        time.sleep(0.01)
    raise AssertionError("the datagram did not arrive, or was not protected")


def both_ports(mode: str) -> Callable[[Case], list[int]]:
    target = {"transport": FW4, "tunnel": INSIDE_FW}[mode]

    def scenario(case: Case) -> list[int]:
        protect(case, mode)
        return [through(case, port, target) for port in (5000, 5001)]

    return scenario


@BACKENDS
@pytest.mark.parametrize("mode", ["transport", "tunnel"])
def test_a_decrypted_packet_is_not_judged_by_its_envelope(mode: str, backend: Backend) -> None:
    assert compare(rules(ESP, PORT), both_ports(mode), backend=backend) == [2, 1]


@BACKENDS
def test_an_accepting_rule_above_our_jump_lets_no_mark_through(backend: Backend) -> None:
    """The envelope would keep its code past our jump, and the inner packet would obey it."""

    def scenario(case: Case) -> list[int]:
        found = both_ports("transport")(case)
        with entered(case.fw):
            call(case.tables.prefix, "-I", "INPUT", "1", "-p", "esp", "-j", "ACCEPT")
        return [*found, *(through(case, port) for port in (5000, 5001))]

    assert compare(rules(ESP, PORT), scenario, backend=backend) == [2, 1, 2, 1]


def test_states_that_are_there_already_are_refused() -> None:
    with Case(Backend.LEGACY, Family.IPV4) as case:
        case.tables.restore(rules(ESP, PORT))
        protect(case, "transport")
        with (
            pytest.raises(RolloutError, match="IPsec states are configured") as refused,
            enforcing(case, Backend.LEGACY, Family.IPV4),
        ):
            pass
        assert refused.value.hint == "stay in the shadow stage on IPsec hosts"
        assert [through(case, port) for port in (5000, 5001)] == [2, 1]


def test_states_that_come_later_end_the_lease() -> None:
    with Case(Backend.LEGACY, Family.IPV4) as case:
        case.tables.restore(rules(ESP, PORT))
        with enforcing(case, Backend.LEGACY, Family.IPV4) as program:
            assert program.tick() is None
            protect(case, "transport")
            trouble = next(filter(None, (program.tick() for _ in range(6))), None)
            assert trouble is not None
            assert "IPsec" in trouble
            decided = program.decided()
            assert [through(case, port) for port in (5000, 5001)] == [2, 1]
            assert program.decided() in (0, decided)
