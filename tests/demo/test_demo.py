"""The demonstration's pieces: its ruleset, its traffic, its measuring, its cleaning up.

The whole tour is what `make demo` runs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bpfilter.demo.flood import enable_gro, flooder, udp_frame
from bpfilter.demo.network import FLOOD4, Network, inside
from bpfilter.demo.tour import ruleset_text
from bpfilter.demo.traffic import PROBES, Services, run_probes
from bpfilter.rollout.tables import Tables
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

USED = {"LOG", "REJECT", "DROP", "ACCEPT", "RETURN", "DNAT", "MASQUERADE"}
MATCHES = {"conntrack", "limit", "recent", "hashlimit", "connlimit", "multiport", "iprange"}


def exists(namespace: str) -> bool:
    return Path("/run/netns", namespace).exists()


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_the_ruleset_is_large_and_has_what_real_ones_have(family: Family) -> None:
    ruleset = read_text(ruleset_text(family), family=family)
    rules = list(ruleset.rules())
    assert len(rules) >= 150
    assert {rule.target.name for rule in rules} >= USED
    assert {match.name for rule in rules for match in rule.matches} >= MATCHES
    assert any(rule.chain == "DOCKER" for rule in rules)


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_iptables_treats_every_probe_as_the_demonstration_says(backend: Backend) -> None:
    with Network() as network, Services(network):
        with inside(network.server):
            for family in Family:
                Tables(family, backend).restore(ruleset_text(family))
        results = run_probes(network)
    wanted = {probe.name: probe.wanted for probe in PROBES}
    assert results == {name: wanted[name[0]] for name in results}
    assert len(results) == 2 * len(PROBES)


@pytest.mark.kernel
def test_measuring_sends_real_packets_through_the_server() -> None:
    with Network() as network:
        enable_gro(network)
        with inside(network.server):
            tables = Tables(Family.IPV4, Backend.NFT)
            tables.restore(f"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s {FLOOD4} -j DROP\nCOMMIT\n")
        with flooder(network) as flood:
            assert flood.nanoseconds(udp_frame(network, 53), 1000, rounds=2) > 0
        with inside(network.server):
            saved = tables.save(counters=True)
        assert f"[2000:92000] -A INPUT -s {FLOOD4}/32 -j DROP" in saved


@pytest.mark.kernel
def test_nothing_stays_after_a_failure_or_a_killed_demonstration() -> None:
    network = Network()
    with pytest.raises(ZeroDivisionError), network:
        assert exists(network.server)
        raise ZeroDivisionError
    assert not exists(network.server)
    assert not exists(network.client)
    child = subprocess.Popen(["true"])
    child.wait()
    abandoned = f"bpfilter-demo-{child.pid}-server"
    subprocess.run(["ip", "netns", "add", abandoned], check=True)
    with Network():
        assert not exists(abandoned)


@pytest.mark.kernel
def test_the_whole_way_ends_well_and_leaves_nothing() -> None:
    """`make demo`: the first command that a newcomer runs."""
    program = "import sys; from bpfilter.cli.main import main; sys.argv[0] = 'bpfilter'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "demo"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "holds for both families" in done.stdout
    assert "reverted by the kernel, nothing lost" in done.stdout
