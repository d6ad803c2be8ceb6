"""What others do to the host while we enforce: the verdicts are theirs from the next packet on.

CASES t9, t15, t16, t20, t22, t23 and the daemon in a time namespace.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from bpfilter.errors import RolloutError
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import ACCEPT, DROP, FW4, PEER4, Case, rules
from tests.cases.enforcing import enforcing
from tests.rollout.network import call, entered

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
PORT = "-A INPUT -i v1 -p udp -m udp --dport 5000 -j ACCEPT"
PACKET = IP(src=PEER4, dst=FW4) / UDP(sport=1000, dport=5000)
_LEGACY4 = (Backend.LEGACY, Family.IPV4)
EDITS = ("-I INPUT 1 -p udp -j DROP", "-I INPUT 2 -p udp -j DROP", "-F INPUT")


@BACKENDS
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_rules_holds_from_the_next_packet_on(edit: str, backend: Backend) -> None:
    with Case(backend, Family.IPV4) as case:
        case.tables.restore(rules(PORT))
        with enforcing(case, backend, Family.IPV4) as program:
            assert case.judge(PACKET) == ACCEPT
            decided = program.decided()
            assert decided > 0
            with entered(case.fw):
                call(case.tables.prefix, *edit.split())
            assert case.judge(PACKET) == DROP
            assert program.decided() in (0, decided)
            assert program.tick() is not None


@BACKENDS
def test_chains_of_others_can_be_deleted_while_we_enforce(backend: Backend) -> None:
    banned = ("-A INPUT -p tcp -m tcp --dport 22 -j f2b-sshd", PORT)
    inside = "-A f2b-sshd -s 192.0.2.7/32 -j REJECT --reject-with icmp-port-unreachable"
    with Case(backend, Family.IPV4) as case:
        case.tables.restore(rules(*banned, inside, chains=["f2b-sshd"]))
        with enforcing(case, backend, Family.IPV4), entered(case.fw):
            tool = case.tables.prefix
            call(tool, *banned[0].replace("-A", "-D").split())
            call(tool, "-F", "f2b-sshd")
            call(tool, "-X", "f2b-sshd")


def test_a_renamed_interface_takes_the_original_rules() -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        with enforcing(case, *_LEGACY4) as program:
            assert case.judge(PACKET) == ACCEPT
            call("ip", "-n", case.fw, "link", "set", "v1", "name", "wan9")
            before = case.tables.packets("-p udp .*-j ACCEPT")
            case.emit(PACKET)
            assert program.tick() is not None
            assert case.tables.packets("-p udp .*-j ACCEPT") == before


def test_an_address_that_comes_or_goes_is_judged_by_the_original_rules() -> None:
    extra = IP(src=PEER4, dst="10.99.1.9") / UDP(sport=1000, dport=5000)
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        with enforcing(case, *_LEGACY4) as program:
            call("ip", "-n", case.fw, "addr", "add", "10.99.1.9/24", "dev", "v1")
            assert case.judge(extra) == ACCEPT
            assert program.decided() == 0
            assert program.tick() is None
            assert case.judge(extra) == ACCEPT
            call("ip", "-n", case.fw, "addr", "del", "10.99.1.9/24", "dev", "v1")
            assert case.judge(extra) == DROP
            assert program.tick() is None
            assert case.judge(PACKET) == ACCEPT


def test_a_lease_from_another_clock_counts_as_over() -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        with enforcing(case, *_LEGACY4, lease_seconds=1_000_000) as program:
            assert case.judge(PACKET) == ACCEPT
            assert program.decided() == 0


def test_a_daemon_in_a_time_namespace_does_not_enforce() -> None:
    script = "from bpfilter.rollout.host import host_obstacles; print(*host_obstacles())"
    words = ["unshare", "--time", "--fork", "--monotonic", "1000000", sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "time namespace" in done.stdout, done.stderr


@pytest.mark.parametrize("hook", ["nat", "filter"])
def test_native_nft_translation_is_an_obstacle(hook: str) -> None:
    priority = {"nat": "dstnat", "filter": "-150"}[hook]
    action = {"nat": "udp dport 5000 redirect to :22", "filter": "udp dport 5000 meta mark set 1"}
    table = f"""table ip theirs {{
        chain pre {{
            type {hook} hook prerouting priority {priority};
            {action[hook]}
        }}
    }}"""
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        with entered(case.fw):
            call("nft", "-f", "-", data=table)
        with pytest.raises(RolloutError, match="nft"), enforcing(case, *_LEGACY4):
            pass


@pytest.fixture(scope="module")
def forgery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program of another tool that writes the whole mark."""
    compiled = tmp_path_factory.mktemp("forge") / "forge.bpf.o"
    source = Path(__file__).with_name("forge.bpf.c")
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    call("clang", "-target", "bpf", "-O2", "-g", include, "-c", str(source), "-o", str(compiled))
    return compiled


def forge(case: Case, program: Path) -> None:
    with entered(case.fw):
        call("tc", "qdisc", "add", "dev", "v1", "clsact")
        filter_ = ["bpf", "direct-action", "object-file", str(program), "section", "tc"]
        call("tc", "filter", "add", "dev", "v1", "ingress", *filter_)


def test_a_foreign_program_that_could_forge_the_mark_is_an_obstacle(forgery: Path) -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        forge(case, forgery)
        with pytest.raises(RolloutError, match="v1"), enforcing(case, *_LEGACY4):
            pass


def test_a_foreign_program_that_comes_later_ends_the_lease(forgery: Path) -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        with enforcing(case, *_LEGACY4) as program:
            forge(case, forgery)
            assert program.tick() is not None
            assert case.judge(IP(src=PEER4, dst=FW4) / UDP(sport=1, dport=5001)) == DROP


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_devices_where_ip_does_not_receive_are_refused(kind: str) -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        if kind == "bridge":
            call("ip", "-n", case.fw, "link", "add", "br0", "type", "bridge")
            call("ip", "-n", case.fw, "link", "set", "v1", "master", "br0")
        else:
            call("ip", "-n", case.fw, "link", "add", "mv0", "link", "v1", "type", "macvlan")
        with pytest.raises(RolloutError, match="v1"), enforcing(case, *_LEGACY4):
            pass


@pytest.mark.parametrize("target", ["NFLOG", "NFQUEUE --queue-bypass"])
def test_an_earlier_hook_that_shows_the_mark_leaves_none(target: str) -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT, mangle=[f"-A PREROUTING -p udp -j {target}"]))
        with pytest.raises(RolloutError, match="mark"), enforcing(case, *_LEGACY4):
            pass
