"""A live legacy ruleset is read only if its text restores to what the kernel holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.tools import tool
from tests.ruleset.test_live import live

pytestmark = pytest.mark.kernel

STATEFUL = """*filter
:INPUT ACCEPT [0:0]
:user - [0:0]
-A INPUT -p tcp -m set --match-set bad src -j DROP
-A INPUT -m limit --limit 3/sec -j LOG
-A INPUT -m recent --name x --rcheck -m hashlimit --hashlimit-upto 3/sec --hashlimit-name h -j DROP
-A INPUT -p tcp -m connlimit --connlimit-above 3 -j REJECT --reject-with tcp-reset
-A INPUT -m quota --quota 1000 -m statistic --mode nth --every 3 --packet 1 -g user
-A INPUT -m string --string abc --algo bm -m comment --comment "a b"
-A INPUT -j SET --add-set bad src
-A user -i + -o eth+ -j RETURN
COMMIT
"""


def restored(family: Family, text: str) -> str:
    restore = tool(family, Backend.LEGACY, "restore")
    other = "inet" if family is Family.IPV4 else "inet6"
    # A second set, so that the index is not the one that a new namespace gives.
    sets = f"ipset create zero hash:net; ipset create bad hash:net family {other}\n"
    return f"{sets}{restore} <<'END'\n{text}END\n"


@pytest.mark.parametrize("family", list(Family), ids=str)
@pytest.mark.parametrize("option", ["! --sport 0:65535", "! --dport 0:65535"])
def test_a_negated_full_range_is_refused_by_chain_and_number(
    family: Family, option: str, tmp_path: Path
) -> None:
    text = f"""*filter
:INPUT DROP [0:0]
:user - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j user
-A user -p udp -j DROP
-A user -p tcp -m tcp {option} -j ACCEPT
COMMIT
"""
    said = live(restored(family, text), tmp_path, family)
    assert said.startswith("refused iptables-legacy-save does not print the rules")
    assert "rule 2 of chain user of table filter: tcp" in said
    assert "hint: " in said


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_a_negated_interface_that_is_any_is_refused(family: Family, tmp_path: Path) -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD ! -i + -j ACCEPT\nCOMMIT\n"
    said = live(restored(family, text), tmp_path, family)
    assert "rule 1 of chain FORWARD of table filter: addresses, interfaces or protocol" in said


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_state_of_the_kernel_and_of_the_namespace_is_no_difference(
    family: Family, tmp_path: Path
) -> None:
    said = live(restored(family, STATEFUL), tmp_path, family)
    assert said.splitlines()[0] == "legacy"
    assert "-A user" in said


def test_packets_that_moved_the_state_are_no_difference(tmp_path: Path) -> None:
    script = f"""
    ip link set lo up
    {restored(Family.IPV4, STATEFUL)}
    ping -c 3 -i 0.2 -W 1 127.0.0.1 >&2 || true
    """
    assert live(script, tmp_path).splitlines()[0] == "legacy"


def test_what_cannot_be_restored_elsewhere_is_read_with_a_warning(tmp_path: Path) -> None:
    script = """
    iptables-legacy-restore <<END
*filter
-A INPUT -p udp -j IDLETIMER --timeout 600 --label bpfilter-test
COMMIT
END
    """
    said = live(script, tmp_path).splitlines()[0]
    assert said.startswith("legacy what iptables-legacy-save printed was not compared")
