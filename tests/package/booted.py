"""The package's service under real systemd, in a booted Debian 12: `make boots` runs this.

With Linux 6.12 (backports) it goes all the way to enforce; Debian 12's own 6.1 lacks what the
program needs. Tests of a class share a machine and go on from each other; each is a few minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.guest.kernels import KERNELS
from tests.package.built import LATER, installed, plain_root
from tests.package.debian import Root
from tests.package.machine import Machine, booted

SOCKET = "/run/bpfilterd/api.sock"
FOLLOWED = "aca451dbed294947a8fe2b13e0906106"
AUDIT = "26d6cdb108ba41cc80da961ce5b57728"
ADOPTED = "6db2986c7c494c058aebcbf3537367a4"
SHOW = "systemctl show --value bpfilterd --property"
AT_ONCE = "--gate seconds=1 --gate packets=0"
RULES = "iptables-save | grep '^-A'"
CONFIGURED = """
[deployment]
stage = "enforce"
interfaces = ["v1"]
lease_seconds = 30.0
[deployment.gates]
seconds = 1.0
packets = 0
"""
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return plain_root(tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="class")
def machine(
    request: pytest.FixtureRequest, debian: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    kernel = KERNELS[request.cls.KERNEL]
    above, work = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("machine")
    with installed(debian, above) as root:
        if request.cls.IPTABLES == "legacy":
            root.call("update-alternatives", "--set", "iptables", "/usr/sbin/iptables-legacy")
        if request.cls.CONFIGURATION:
            place = root.directory / "etc/bpfilter/bpfilter.d/deployment.toml"
            place.parent.mkdir()
            place.write_text(request.cls.CONFIGURATION)
        with booted(kernel, root, work) as found:
            found.until("systemctl is-active --quiet bpfilterd")
            yield found


def reaches(machine: Machine, stage: str) -> None:
    said = f"test \"$({SHOW} StatusText)\" = 'stage {stage}'"
    machine.until(f"systemctl is-active --quiet bpfilterd && {said}")


def decided(machine: Machine) -> int:
    """Packets that came with a verdict of the program."""
    said = machine.call("iptables-save --counters")
    return sum(map(int, re.findall(r"\[(\d+):\d+\] -A INPUT .* -j BPF-", said)))


def adopted(machine: Machine) -> int:
    return len(machine.call(f"journalctl -q -o cat MESSAGE_ID={ADOPTED}").splitlines())


@contextmanager
def traffic(machine: Machine) -> Iterator[None]:
    """Datagrams to an open and a closed port meanwhile: every one has to get the rules' verdict."""
    machine.call("rm -f /run/enough /run/receiving")
    machine.call("systemd-run --quiet --unit=receive python3 /opt/traffic.py receive")
    machine.until("test -e /run/receiving")
    machine.call("systemd-run -q --unit=send ip netns exec peer python3 /opt/traffic.py send")
    yield
    machine.call("sleep 1; touch /run/enough")
    machine.until("! systemctl is-active --quiet receive send")
    said = machine.call("journalctl -o cat --unit=receive --unit=send")
    sent = int(re.findall(r"^sent (\d+)", said, re.MULTILINE)[-1])
    came, leaked = re.findall(r"^open (\d+) closed (\d+)", said, re.MULTILINE)[-1]
    assert sent > 3, "an emulated machine is slow, but not that slow"
    assert (int(came), int(leaked)) == (sent, 0)


def is_killed_and_taken_over(machine: Machine) -> None:
    with traffic(machine):
        machine.call("systemctl kill --kill-whom=main --signal=KILL bpfilterd")
        machine.until(f'test "$({SHOW} NRestarts)" = 1')
        reaches(machine, "enforce")
    assert adopted(machine) == 1


class TestWhatIsDeployedOutlivesTheDaemonAndTheMachine:
    KERNEL = "6.12"
    IPTABLES = "nft"
    CONFIGURATION = ""

    def test_the_service_waits_and_its_socket_is_the_groups(self, machine: Machine) -> None:
        assert machine.call(f"{SHOW} StatusText") == "stage off\n"
        assert machine.call(f"stat -c '%a %U %G' {SOCKET}") == "660 root bpfilter\n"
        assert machine.call("systemctl --failed --no-legend") == ""
        assert "BPF" not in machine.call(RULES)

    def test_a_confirmed_deployment_decides(self, machine: Machine) -> None:
        ask = f"--interface v1 --stage enforce {AT_ONCE} --confirm-within 900 --confirm-id here"
        machine.call(f"bpfilter deploy {ask}")
        machine.call(f"bpfilter confirm --url unix://{SOCKET} here")
        reaches(machine, "enforce")
        assert machine.call(f"journalctl -q -o cat MESSAGE_ID={AUDIT}").endswith(": confirm\n")
        with traffic(machine):
            machine.call("sleep 2")
        assert decided(machine) > 0

    def test_killed_it_is_started_again_and_takes_over(self, machine: Machine) -> None:
        is_killed_and_taken_over(machine)

    def test_after_a_reboot_it_stands_again(self, machine: Machine) -> None:
        machine.reboot()
        reaches(machine, "enforce")
        before = decided(machine)
        with traffic(machine):
            machine.call("sleep 2")
        assert decided(machine) > before


class TestHangsAndStops:
    KERNEL = "6.12"
    IPTABLES = "nft"
    CONFIGURATION = CONFIGURED

    def test_what_output_drops_is_dropped_before_its_rule(self, machine: Machine) -> None:
        reaches(machine, "enforce")
        send = "import socket; socket.socket(2, 2).sendto(b'x', ('10.99.1.2', 5002))"
        assert "PermissionError" in machine.run(f'python3 -c "{send}"')[1]
        rule = "-A OUTPUT -o v1 -p udp -m udp --dport 5002 -j DROP"
        assert f"[0:0] {rule}" in machine.call("iptables-save --counters").splitlines()

    def test_hanging_it_is_ended_by_the_watchdog_and_started_again(self, machine: Machine) -> None:
        reaches(machine, "enforce")
        with traffic(machine):
            machine.call("systemctl kill --kill-whom=main --signal=STOP bpfilterd")
            machine.until(f'test "$({SHOW} NRestarts)" = 1')
            reaches(machine, "enforce")
        assert "limit 45s" in machine.call("journalctl -u bpfilterd -o cat | grep Watchdog")
        assert adopted(machine) == 1

    def test_stopped_it_leaves_nothing_and_started_it_decides_again(self, machine: Machine) -> None:
        with traffic(machine):
            machine.call("systemctl stop bpfilterd")
            assert "BPF" not in machine.call(RULES)
            assert machine.call("ls /sys/fs/bpf") == ""
            machine.call("systemctl start bpfilterd")
            reaches(machine, "enforce")


class TestThePackageComesAndGoes:
    KERNEL = "6.12"
    IPTABLES = "nft"
    CONFIGURATION = CONFIGURED

    def test_an_upgrade_changes_no_verdict_and_hands_over(self, machine: Machine) -> None:
        reaches(machine, "enforce")
        with traffic(machine):
            machine.call("dpkg --install /root/later.deb", seconds=900)
            reaches(machine, "enforce")
        assert machine.call("dpkg-query -Wf '${Version}' bpfilter") == LATER
        assert adopted(machine) == 1
        assert decided(machine) > 0

    def test_removal_proves_that_nothing_is_left(self, machine: Machine) -> None:
        with traffic(machine):
            said = machine.call("dpkg --remove bpfilter", seconds=900)
        assert "nothing of ours is left in this network namespace" in said
        assert "BPF" not in machine.call(RULES)
        assert machine.call("ls /sys/fs/bpf") == ""
        assert machine.run("systemctl is-active bpfilterd")[1] == "inactive\n"
        machine.call("dpkg --purge bpfilter")
        places = "/var/lib/bpfilterd /run/bpfilterd /etc/bpfilter/bpfilter.toml"
        assert machine.run(f"ls -d {places}")[1].count("No such file") == 3


class TestLegacyRules:
    KERNEL = "6.12"
    IPTABLES = "legacy"
    CONFIGURATION = CONFIGURED.replace("lease_", "accept_state_reset = true\nlease_")

    def test_they_are_taken_over_under_what_the_unit_allows(self, machine: Machine) -> None:
        reaches(machine, "enforce")
        assert "legacy" in machine.call("iptables --version")
        with traffic(machine):
            machine.call("sleep 2")
        assert decided(machine) > 0

    def test_killed_it_is_started_again_and_takes_over(self, machine: Machine) -> None:
        is_killed_and_taken_over(machine)

    def test_an_edit_is_followed(self, machine: Machine) -> None:
        machine.call("iptables -D INPUT -p udp --dport 5000 -j ACCEPT")
        machine.call("iptables -A INPUT -p udp --dport 5000 -j ACCEPT")
        with traffic(machine):
            machine.until(f"journalctl -q -o cat MESSAGE_ID={FOLLOWED} | grep .")
            reaches(machine, "enforce")


class TestAKernelThatLacksWhatTheProgramNeeds:
    KERNEL = "6.1"
    IPTABLES = "nft"
    CONFIGURATION = ""

    def test_the_service_runs_and_the_probe_names_what_is_missing(self, machine: Machine) -> None:
        assert machine.call("uname -r").startswith("6.1.")
        assert machine.call(f"{SHOW} StatusText") == "stage off\n"
        code, said = machine.run("bpfilter doctor --format json")
        assert code == 1
        assert "lacks reading kernel fields of a packet (Linux 6.2)" in said

    def test_rules_are_planned(self, machine: Machine) -> None:
        assert "Proof: every packet" in machine.call("bpfilter plan")

    def test_a_deployment_is_refused_and_the_service_goes_on(self, machine: Machine) -> None:
        before = machine.call(RULES)
        code, said = machine.run(f"bpfilter deploy --interface v1 --stage enforce {AT_ONCE}")
        assert code == 1
        assert "this kernel cannot run the program" in said
        with traffic(machine):
            reaches(machine, "off")
        assert machine.call(RULES) == before
        assert machine.call(f"{SHOW} NRestarts") == "0\n"
