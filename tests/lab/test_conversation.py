"""The lab brings packets before the rules in the connection state that it wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.lab.conversation import TRACKED_NUMBERS, UNTRACKED_NUMBERS, Stimulus
from bpfilter.lab.host import LabHost
from bpfilter.lab.oracle import Oracle
from bpfilter.ruleset.fields import STATES, Family, Field, State
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.lab.test_packets import packet

pytestmark = pytest.mark.kernel

RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
-A INPUT -m conntrack --ctstate NEW -j DROP
-A FORWARD -m conntrack --ctstate NEW -j DROP
COMMIT
"""
UNICAST = {
    Family.IPV4: (0x0A000001, 0xC6336407),
    Family.IPV6: (0x20010DB8 << 96 | 1, 0x20010DB8 << 96 | 9),
}
ECHO = {Family.IPV4: (1, 8 << 8), Family.IPV6: (58, 128 << 8)}
UNREACHABLE = {Family.IPV4: (1, 3 << 8 | 1), Family.IPV6: (58, 1 << 8)}


def stimuli(family: Family) -> list[Stimulus]:
    """Each protocol in each state that it can have; every packet its own connection."""
    source, destination = UNICAST[family]
    kinds = [
        ("TCP", {"protocol": 6, "TCP_FLAGS": 2, "DESTINATION_PORT": 22}, STATES),
        ("UDP", {"protocol": 17, "DESTINATION_PORT": 53}, STATES),
        ("echo", dict(zip(("protocol", "ICMP_TYPE"), ECHO[family], strict=True)), STATES),
        (
            "error",
            dict(zip(("protocol", "ICMP_TYPE"), UNREACHABLE[family], strict=True)),
            (State.RELATED, State.INVALID, State.UNTRACKED),
        ),
    ]
    found = []
    for _, values, states in kinds:
        for state in states:
            port = 2000 + len(found)
            fields = packet(family, **values, LENGTH=140)
            fields |= {Field.SOURCE: source + len(found), Field.DESTINATION: destination}
            if values["protocol"] in (6, 17):
                fields[Field.SOURCE_PORT] = port
            low = UNTRACKED_NUMBERS if state is State.UNTRACKED else TRACKED_NUMBERS
            found.append(Stimulus(low[0] + len(found), fields, state))
    return found


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("chain", ["INPUT", "FORWARD"])
def test_every_packet_comes_in_the_wanted_state_and_is_judged_by_it(
    tmp_path: Path, backend: Backend, family: Family, chain: str
) -> None:
    ruleset = read_text(RULES, family=family)
    image = assemble([compile_ruleset(ruleset, (("filter", chain),))])
    sent = stimuli(family)
    names = {0: "eth7"}
    lock = tmp_path / "lock"
    with (
        LabHost.build(["eth7"], lock, ruleset, backend, RULES.encode()) as host,
        Oracle(host.topology, family) as oracle,
        oracle.classifying(image, chain, ()) as classifier,
    ):
        seen = oracle.observe(classifier, chain, sent, names, names)
    states = [(o.stimulus.packet[Field.PROTOCOL], o.state) for o in seen]
    assert states == [(s.packet[Field.PROTOCOL], s.wanted) for s in sent]
    for observation in seen:
        assert observation.verdict == ("DROP" if observation.state is State.NEW else "ACCEPT")
