"""What an ended daemon left decides on while the next one translates the rules, if all is the same.

The first daemon ends in a process of its own, as if killed; its lease is over before the second
begins. What happens while that one plans is done where it would plan.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpfilter.errors import RolloutError
from bpfilter.kernel.arrays import MappedArray
from bpfilter.kernel.config import RUNTIME
from bpfilter.kernel.described import program_map
from bpfilter.rollout import pins, stages
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.prepare import Prepared, prepare
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Iptables, Net, call, entered
from tests.rollout.test_stages import FATES, load, outcome

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
_LEASE_SECONDS = 2.0
REQUEST = Request(("v1",), lease_seconds=_LEASE_SECONDS)


def left_alone(net: Net, state: Path, *, revoked: bool = False) -> None:
    """A daemon that came to enforce and ended without a word; its lease is over, or `revoked`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with entered(net.fw):
                while call("ip", "-6", "address", "show", "tentative"):
                    time.sleep(0.05)  # its route comes when the address is proven unique
                rollout = Rollout(REQUEST, Journal(state), lambda _: None)
                rollout.shadow()
                rollout.enforce()
                if revoked:
                    assert rollout.lease is not None
                    rollout.lease.revoke()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    time.sleep(_LEASE_SECONDS)


def adopted(
    net: Net, state: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]
) -> tuple[bool, list[str]]:
    """Whether the next daemon took over, and what it said; `meanwhile` happens before it plans."""
    said: list[str] = []

    def planning(*words: Any, **options: Any) -> Prepared:
        meanwhile()
        return prepare(*words, **options)

    monkeypatch.setattr(stages, "prepare", planning)
    with entered(net.fw), Rollout(REQUEST, Journal(state), said.append) as rollout:
        return rollout.adopt(), said


def seen(net: Net, tables: Iptables) -> int:
    """How many of twelve packets the original rules saw; all had the right fate."""
    fates, original = outcome(net, tables)
    assert fates == FATES
    return original


@BACKENDS
def test_packets_are_decided_while_the_rules_are_translated(
    net: Net, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = load(net, backend)
    left_alone(net, tmp_path / "state")
    assert seen(net, tables) == 12, "the lease is over"
    found = []

    def meanwhile() -> None:
        found.append(seen(net, tables))
        time.sleep(2 * _LEASE_SECONDS)
        found.append(seen(net, tables))

    took_over, said = adopted(net, tmp_path / "state", monkeypatch, meanwhile)
    assert took_over and found == [0, 0], said


@contextmanager
def leased(net: Net) -> Iterator[Callable[[], int]]:
    """Until when the program that stands may decide, as its own map says it."""
    with entered(net.fw):
        (link,) = pins.open_links().values()
    number = program_map(pins.link_program(link), "runtime")
    assert number is not None
    runtime = MappedArray(number, RUNTIME, 1)
    os.close(number)
    os.close(link)
    yield lambda: int(runtime.cells["valid_until"][0])
    runtime.close()


@BACKENDS
def test_an_edit_meanwhile_ends_it_with_the_next_packet(
    net: Net, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the caretaker sees it too, where the kernel would hide it from the program."""
    tables = load(net, backend)
    left_alone(net, tmp_path / "state")
    found = []

    def meanwhile() -> None:
        assert until() > time.monotonic_ns()
        tables.restore("*filter\n-A INPUT -s 192.0.2.1 -j DROP\nCOMMIT\n", "--noflush")
        found.append(seen(net, tables))
        end = time.monotonic() + 10
        while until():
            assert time.monotonic() < end, "the lease was renewed although the rules changed"
            time.sleep(0.01)

    with leased(net) as until:
        took_over, said = adopted(net, tmp_path / "state", monkeypatch, meanwhile)
    assert not took_over and found == [12], said


def test_what_is_not_taken_over_in_the_end_has_no_lease_left(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(net, Backend.NFT)
    left_alone(net, tmp_path / "state")

    def meanwhile() -> None:
        assert until() > time.monotonic_ns()
        raise RolloutError("cannot be planned")

    with leased(net) as until:
        took_over, _ = adopted(net, tmp_path / "state", monkeypatch, meanwhile)
        assert not took_over
        assert until() == 0


def test_a_lease_that_was_revoked_is_not_given_back(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does at the first mismatch: nobody may have seen it before the daemon ended."""
    tables = load(net, Backend.NFT)
    left_alone(net, tmp_path / "state", revoked=True)
    found = []
    _, said = adopted(net, tmp_path / "state", monkeypatch, lambda: found.append(seen(net, tables)))
    assert found == [12] and any("its lease was revoked" in line for line in said)


def test_another_address_of_the_host_ends_it(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = load(net, Backend.NFT)
    left_alone(net, tmp_path / "state")
    found = []

    def meanwhile() -> None:
        found.append(seen(net, tables))
        call("ip", "address", "add", "192.0.2.7/32", "dev", "v1")
        end = time.monotonic() + 10
        while seen(net, tables) == 0:
            assert time.monotonic() < end
        found.append(seen(net, tables))

    adopted(net, tmp_path / "state", monkeypatch, meanwhile)
    assert found == [0, 12]


def change_rules(net: Net, tables: Iptables, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.restore("*filter\n-A INPUT -s 192.0.2.1 -j DROP\nCOMMIT\n", "--noflush")


def add_an_address(net: Net, tables: Iptables, monkeypatch: pytest.MonkeyPatch) -> None:
    with entered(net.fw):
        call("ip", "address", "add", "192.0.2.7/32", "dev", "v1")


def be_another_version(net: Net, tables: Iptables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfilter.rollout.caretaker.template_digest", lambda: "another")


def take_its_name(net: Net, tables: Iptables, monkeypatch: pytest.MonkeyPatch) -> None:
    with entered(net.fw):
        call("ip", "link", "set", "v1", "down")
        call("ip", "link", "set", "v1", "name", "v9")
        call("ip", "link", "set", "v9", "up")
        call("ip", "link", "add", "v1", "type", "veth", "peer", "name", "v1p")
        call("ip", "link", "set", "v1", "up")


@pytest.mark.parametrize(
    "change", [change_rules, add_an_address, be_another_version, take_its_name]
)
def test_what_is_not_as_it_was_left_gets_no_lease(
    net: Net,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Net, Iptables, pytest.MonkeyPatch], None],
) -> None:
    tables = load(net, Backend.NFT)
    left_alone(net, tmp_path / "state")
    change(net, tables, monkeypatch)
    found = []
    with leased(net) as until:
        before = until()
        adopted(net, tmp_path / "state", monkeypatch, lambda: found.append(until()))
    assert found == [before], "nobody renewed it"
