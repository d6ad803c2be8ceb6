"""Namespaces without names: work is done inside, and nothing of them stays."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bpfilter.compiler.ir import Space
from bpfilter.errors import LabError
from bpfilter.lab.netns import Namespace
from bpfilter.lab.topology import LOOPBACK, Topology, device_names, is_device_name
from bpfilter.ruleset.fields import Family


def here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


@pytest.mark.kernel
def test_a_namespace_is_empty_and_the_thread_comes_back(tmp_path: Path) -> None:
    outside = here()
    with Namespace(tmp_path / "lock") as namespace:
        with namespace.inside():
            assert here() != outside
            assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert here() == outside


@pytest.mark.kernel
def test_the_thread_comes_back_after_an_error(tmp_path: Path) -> None:
    outside = here()
    with Namespace(tmp_path / "lock") as namespace:
        with pytest.raises(KeyError), namespace.inside():
            raise KeyError
        assert here() == outside


@pytest.mark.kernel
def test_a_killed_process_leaves_no_namespace(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from bpfilter.lab.topology import Topology\n"
        f"lab = Topology(['eth0'], Path({str(tmp_path / 'lock')!r}))\n"
        "with lab.firewall.inside(): print(Path('/proc/thread-self/ns/net').stat().st_ino)\n"
        "sys.stdout.flush(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        namespace = child.stdout.readline().strip()
        assert namespace in namespaces()
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
    assert namespace not in namespaces()


def namespaces() -> set[str]:
    """Network namespaces that some process or descriptor holds, as lsns(8) finds them."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("net:["):
            found.add(target.removeprefix("net:[").removesuffix("]"))
    return found


@pytest.mark.kernel
def test_a_failing_tool_is_an_error_with_its_words(tmp_path: Path) -> None:
    with Namespace(tmp_path / "lock") as namespace:
        with pytest.raises(LabError, match="nosuchdevice"):
            namespace.run("ip", ["link", "show", "nosuchdevice"])
        with pytest.raises(LabError, match="not installed"):
            namespace.run("no-such-tool")


@pytest.mark.kernel
def test_rules_restored_inside_are_not_on_the_host(tmp_path: Path) -> None:
    with Namespace(tmp_path / "lock") as one, Namespace(tmp_path / "lock") as other:
        text = b"*filter\n:lab-only - [0:0]\nCOMMIT\n"
        one.run("iptables-legacy-restore", [], text)
        assert b"lab-only" in one.run("iptables-legacy-save")
        assert b"lab-only" not in other.run("iptables-legacy-save")


@pytest.mark.kernel
def test_devices_bear_the_names_of_the_rules_even_lo(tmp_path: Path) -> None:
    with Topology(["lo", "eth0.7", "wg0"], tmp_path / "lock") as topology:
        with topology.firewall.inside():
            names = {name for _, name in socket.if_nameindex()}
        assert names >= {"lo", "eth0.7", "wg0", LOOPBACK}
        assert topology.devices["lo"].mac != topology.devices["wg0"].mac


def test_every_class_of_names_gets_a_name_of_that_class() -> None:
    texts = ("", "eth+", "eth0", "eth1+", "lo", "br-1234567890ab+", "none0")
    space = Space(Family.IPV4, texts)
    names = device_names(space)
    assert set(names) == set(range(len(texts)))
    assert all(space.interface_class(name) == index for index, name in names.items())


def test_names_that_no_device_can_bear_are_left_out() -> None:
    assert device_names(Space(Family.IPV4, ("", "eth0:1", "a-name-that-is-too-long"))).keys() == {0}
    assert not is_device_name("a b")
    assert is_device_name("eth0.100")
