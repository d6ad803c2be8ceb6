"""A chain that only bears a name of ours is the operator's: refused, and never touched."""

from __future__ import annotations

import pytest

from bpfilter.errors import RolloutError
from bpfilter.rollout import ours
from bpfilter.rollout.prepare import prepare
from bpfilter.rollout.teardown import remains, teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, entered
from tests.rollout.test_dispatch import without_dates

OPERATORS = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:BPF-INPUT - [0:0]
:BPF-X-0123456789ab - [0:0]
-A INPUT -i v1 -j BPF-INPUT
-A BPF-INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A BPF-INPUT -j MARK --set-xmark 0x0/0xffffffff
-A BPF-INPUT -j BPF-X-0123456789ab
-A BPF-X-0123456789ab -j RETURN
COMMIT
"""
OURS = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:BPF-FORWARD - [0:0]
:BPF-INPUT - [0:0]
:BPF-F-0123456789ab - [0:0]
-A INPUT -i v1 -m mark ! --mark 0x0/0xff00 -j BPF-INPUT
-A FORWARD -i v1 -m mark ! --mark 0x0/0xff00 -j BPF-FORWARD
-A BPF-FORWARD -j MARK --set-xmark 0x0/0xff00
-A BPF-INPUT -m mark --mark 0x100/0xff00 -g BPF-F-0123456789ab
-A BPF-INPUT -j MARK --set-xmark 0x0/0xff00
-A BPF-F-0123456789ab -j MARK --set-xmark 0x0/0xff00
-A BPF-F-0123456789ab -j ACCEPT
COMMIT
"""


def test_a_name_alone_does_not_make_a_chain_ours() -> None:
    assert ours.strangers(OPERATORS) == ("BPF-INPUT", "BPF-X-0123456789ab")
    assert not ours.leftovers(OPERATORS)
    assert ours.strip(OPERATORS) == OPERATORS


def test_what_clears_the_field_and_is_asked_for_it_is_ours() -> None:
    assert ours.strangers(OURS) == ()
    found = ours.leftovers(OURS)
    assert set(found.chains) == {"BPF-FORWARD", "BPF-INPUT", "BPF-F-0123456789ab"}
    assert [chain for chain, _ in found.jumps] == ["INPUT", "FORWARD"]
    assert "BPF-" not in ours.strip(OURS)


EXPRESS = "-A INPUT -i v1 -m mark --mark 0x100/0xff00 -j BPF-F-0123456789ab\n"


def test_a_jump_that_asks_for_one_value_of_our_field_is_ours() -> None:
    text = OURS.replace("-A INPUT", EXPRESS + "-A INPUT")
    assert ours.strangers(text) == ()
    assert [chain for chain, _ in ours.leftovers(text).jumps] == ["INPUT", "INPUT", "FORWARD"]
    assert "BPF-" not in ours.strip(text)
    other = OURS.replace("-A INPUT", EXPRESS.replace("/0xff00", "/0xff") + "-A INPUT")
    assert ours.strangers(other) == ("BPF-F-0123456789ab",)


def test_ours_are_known_after_a_flush_and_a_lone_empty_chain_is_the_operators() -> None:
    flushed = "".join(f"{line}\n" for line in OURS.splitlines() if not line.startswith("-A"))
    assert len(ours.leftovers(flushed).chains) == 3
    lone = flushed.replace(":BPF-FORWARD - [0:0]\n", "").replace(
        ":BPF-F-0123456789ab - [0:0]\n", ""
    )
    assert ours.strangers(lone) == ("BPF-INPUT",)


def test_an_edit_never_empties_the_operators_chain() -> None:
    with pytest.raises(RolloutError, match="BPF-INPUT"):
        ours.edit(OPERATORS, {"BPF-INPUT": ("-j ACCEPT",)}, ())


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend), ids=str)
@pytest.mark.parametrize("family", list(Family), ids=str)
def test_the_operators_chain_is_refused_by_name_and_survives_teardown(
    net: Net, backend: Backend, family: Family
) -> None:
    tables = net.iptables(backend, family)
    tables.restore(OPERATORS)
    before = tables.save()
    with entered(net.fw):
        with pytest.raises(RolloutError, match=r"chain BPF-INPUT, BPF-X-0123456789ab of"):
            prepare(backend)
        assert remains() == ()
        teardown()
    assert without_dates(tables.save()) == without_dates(before)


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_ours_are_recognised_as_iptables_prints_them(net: Net, backend: Backend) -> None:
    tables = net.iptables(backend)
    tables.restore(OURS)
    with entered(net.fw):
        assert len(remains()) == 3
        teardown()
        assert remains() == ()
    assert "BPF-" not in tables.save()
