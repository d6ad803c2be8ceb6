"""What others do to a host every day: each packet keeps getting the verdict of the live rules.

Edits hold from the next packet on; afterwards the daemon decides again, or says why it does not.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfilter.kernel.syscall import bpf
from bpfilter.kernel.xdp import XdpMode, attach_xdp
from bpfilter.rollout.ending import Ending
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.trouble import Cause
from bpfilter.ruleset.model import Backend
from tests.rollout.network import PEER4, Iptables, Net, call, entered
from tests.rollout.serving import reached, served, until
from tests.rollout.test_service import ENFORCE, LATER, kinds
from tests.rollout.test_stages import BACKENDS, FATES, load, outcome

pytestmark = pytest.mark.kernel


def script_in(net: Net, commands: str) -> None:
    """Run shell commands in the firewall's namespace."""
    call("ip", "netns", "exec", net.fw, "sh", "-ec", commands)


@dataclass(frozen=True)
class Change:
    """What is set up, what happens then, and what survives filter from the next packet on."""

    before: str
    then: str
    fates: tuple[int, ...] = tuple(FATES)


EDITS = {
    "fail2ban bans": Change(
        "{t} -N f2b; {t} -A f2b -j RETURN; {t} -I INPUT -p udp --dport 4002 -j f2b",
        f"{{t}} -I f2b 1 -s {PEER4} -j REJECT",
        (3, 0, 0, 0),
    ),
    "fail2ban unbans": Change(
        f"{{t}} -N f2b; {{t}} -A f2b -s {PEER4} -j REJECT; {{t}} -A f2b -j RETURN;"
        " {t} -I INPUT -p udp --dport 4002 -j f2b",
        f"{{t}} -D f2b -s {PEER4} -j REJECT",
    ),
    "Docker stops and starts": Change(
        "{t} -N DOCKER; {t} -N DOCKER-USER; {t} -A DOCKER-USER -j RETURN;"
        " {t} -I FORWARD -j DOCKER-USER; {t} -t nat -N DOCKER;"
        " {t} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "{t} -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER;"
        " {t} -t nat -F DOCKER; {t} -t nat -X DOCKER; {t} -F DOCKER; {t} -X DOCKER;"
        " {t} -N DOCKER; {t} -t nat -N DOCKER;"
        " {t} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER;"
        " {t} -D FORWARD -j DOCKER-USER; {t} -I FORWARD -j DOCKER-USER",
    ),
    "a rule above our jump": Change("", "{t} -I INPUT 1 -p udp --dport 4001 -j DROP", (0, 3, 0, 0)),
    "a policy": Change("", "{t} -P INPUT ACCEPT", (3, 3, 0, 3)),
    "a raw rule": Change("", "{t} -t raw -A PREROUTING -p udp --dport 4001 -j DROP", (0, 3, 0, 0)),
    "a mangle rule": Change(
        "", "{t} -t mangle -A PREROUTING -p udp --dport 4001 -j DROP", (0, 3, 0, 0)
    ),
}


@BACKENDS
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_holds_at_once_and_is_followed(
    net: Net, backend: Backend, name: str, tmp_path: Path
) -> None:
    tables, change = load(net, backend), EDITS[name]
    tool = tables.prefix
    script_in(net, change.before.format(t=tool) or "true")

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        assert decided(net, tables) > 0
        script_in(net, change.then.format(t=tool))
        assert outcome(net, tables)[0] == list(change.fates), "from the next packet on"
        yield from until(lambda: "followed" in kinds(tmp_path))
        assert outcome(net, tables)[0] == list(change.fates)
        assert decided(net, tables) > 0, "by the programs again"

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


def decided(net: Net, tables: Iptables) -> int:
    """Packets of some that came to the dispatch with a code."""
    before = tables.packets("-A INPUT .* -j BPF-")
    net.send(4002, 3)
    net.send(4003, 3)
    return tables.packets("-A INPUT .* -j BPF-") - before


@BACKENDS
def test_a_restore_of_everything_and_an_old_save_of_ours_do_no_harm(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    """netfilter-persistent stores our chains as well, and brings old ones back at some time."""
    tables = load(net, backend)
    plain = tables.save()

    def followed(times: int) -> Iterator[None]:
        yield from until(lambda: kinds(tmp_path).count("followed") == times)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        old = tables.save()
        assert "BPF-INPUT" in old
        tables.restore(f"*filter\n{LATER}\nCOMMIT\n", "--noflush")
        yield from followed(1)
        assert outcome(net, tables)[0] == [3, 3, 0, 3]
        tables.restore(old)
        assert outcome(net, tables)[0] == FATES, "the rules of then, from the next packet on"
        yield from followed(2)
        assert outcome(net, tables)[0] == FATES
        tables.restore(plain)
        assert outcome(net, tables)[0] == FATES
        yield from until(lambda: len(kinds(tmp_path)) > 0 and decided(net, tables) > 0)
        assert outcome(net, tables)[0] == FATES

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED
    tables.restore(plain)


@BACKENDS
def test_a_stored_dispatch_without_a_daemon_judges_nobody(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    tables = load(net, backend)
    stored: list[str] = []

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        stored.append(tables.save())

    served(net, tmp_path, ENFORCE, script)
    tables.restore(stored[0])
    assert outcome(net, tables) == (FATES, 12), "the original rules judge"


@BACKENDS
def test_a_swapped_set_holds_from_the_next_packet_on(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    tables = load(net, backend)
    script_in(
        net,
        "ipset create bad hash:ip; ipset create next hash:ip;"
        f" ipset add next {PEER4};"
        f" {tables.prefix} -I INPUT -p udp --dport 4001 -m set --match-set bad src -j DROP",
    )

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        assert outcome(net, tables)[0] == FATES
        for fates in ([0, 3, 0, 0], FATES):
            script_in(net, "ipset swap bad next")
            assert outcome(net, tables)[0] == fates
            assert decided(net, tables) > 0, "no rule changed: the programs go on"
            yield

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


@BACKENDS
def test_addresses_and_routes_come_and_go(net: Net, backend: Backend, tmp_path: Path) -> None:
    tables = load(net, backend)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        for command in (
            "ip addr add 10.99.1.77/24 dev v1",
            "ip route add 192.0.2.0/24 dev v1",
            "ip route del 192.0.2.0/24",
            "ip addr del 10.99.1.77/24 dev v1",
        ):
            script_in(net, command)
            assert outcome(net, tables)[0] == FATES
            yield
        yield from until(lambda: decided(net, tables) > 0)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


def test_bridged_frames_that_begin_to_pass_iptables_end_the_lease(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    script_in(
        net,
        "ip link add br9 type bridge;"
        " sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
    )

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        assert Cause.HOST not in kinds(tmp_path)
        script_in(net, "sysctl -qw net.bridge.bridge-nf-call-iptables=1")
        assert outcome(net, tables)[0] == FATES
        yield from until(lambda: Cause.HOST in kinds(tmp_path))
        assert outcome(net, tables) == (FATES, 12), "iptables alone"
        script_in(net, "sysctl -qw net.bridge.bridge-nf-call-iptables=0")
        yield from until(lambda: journal.stage is Stage.ENFORCE and decided(net, tables) > 0)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


def test_an_interface_that_is_enslaved_ends_the_lease_and_comes_back(
    net: Net, tmp_path: Path
) -> None:
    tables = load(net, Backend.NFT)
    script_in(
        net,
        "ip link add br9 type bridge;"
        " sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
    )

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        script_in(net, "ip link set v1 master br9")
        yield from until(lambda: Cause.HOST in kinds(tmp_path))
        script_in(net, "ip link set v1 nomaster")
        yield from until(lambda: journal.stage is Stage.ENFORCE and decided(net, tables) > 0)
        assert outcome(net, tables)[0] == FATES

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


def test_a_foreign_xdp_program_changes_no_verdict(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        with entered(net.fw):
            link = attach_xdp(xdp_pass(), socket.if_nametoindex("v1"), XdpMode.GENERIC)
        yield
        assert outcome(net, tables) == (FATES, 0), "seen behind it, and decided"
        link.close()
        yield
        assert outcome(net, tables) == (FATES, 0)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


class _Load(ctypes.Structure):
    """The members of union bpf_attr for BPF_PROG_LOAD, as far as this needs them."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("instructions", ctypes.c_uint32),
        ("code", ctypes.c_uint64),
        ("licence", ctypes.c_uint64),
    )


def xdp_pass() -> int:
    """r0 = XDP_PASS; exit."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = _Load(6, 2, ctypes.addressof(code), ctypes.addressof(licence))
    return bpf(5, attributes, "load a program that passes everything")


@BACKENDS
@pytest.mark.parametrize("table", ["raw", "mangle"])
def test_a_rule_that_begins_to_write_our_bits_ends_what_obeys_them(
    net: Net, backend: Backend, table: str, tmp_path: Path
) -> None:
    """It writes behind the program, so no generation that the program sees can help."""
    tables = load(net, backend)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        for code in (0x17, 0x5C, 0xE6, 0xFF):
            script_in(
                net,
                f"{tables.prefix} -t {table} -A PREROUTING -p udp --dport 4004"
                f" -j MARK --set-xmark {code << 24:#x}/0xff000000",
            )
            yield from until(lambda: Cause.MARKS in kinds(tmp_path))
            assert outcome(net, tables)[0] == FATES
        yield from until(lambda: decided(net, tables) > 0)
        assert "0xff000000" not in tables.save().partition("*filter")[2].partition("COMMIT")[0]
        assert outcome(net, tables)[0] == FATES, "decided by other bits"

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED
