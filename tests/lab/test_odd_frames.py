"""Whatever arrives, the program decides it as iptables does, or leaves it to iptables."""

from __future__ import annotations

import socket
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.kernel.config import Mode, Trace
from bpfilter.kernel.observer import Hook, Observer
from bpfilter.kernel.program import Classifier, Options
from bpfilter.lab.compare import possible_verdicts
from bpfilter.lab.host import LabHost
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.lab.odd_frames import OddFrames

pytestmark = pytest.mark.kernel

FRAMES = 3000
RULES = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A CHAIN -p tcp -m tcp --dport 22 ! --tcp-flags SYN,ACK,FIN SYN -j ACCEPT
-A CHAIN -p tcp -m tcp --dport 80 --tcp-flags SYN,ACK,FIN SYN -j ACCEPT
-A CHAIN -p tcp -m tcp --sport 53 -j DROP
-A CHAIN -p udp -m udp --sport 7:53 -m length --length 0:60 -j ACCEPT
-A CHAIN -p udp -m udp --dport 7 -m conntrack --ctstate INVALID -j ACCEPT
-A CHAIN -p udp -m length --length 28 -j DROP
-A CHAIN -p ICMP KIND 8 -j ACCEPT
-A CHAIN -p ICMP KIND 3/1 -j ACCEPT
-A CHAIN -p ICMP KIND 128 -j ACCEPT
-A CHAIN -p sctp -m multiport --ports 7,9,80 -j ACCEPT
-A CHAIN ! -p tcp HOPS 10 -j DROP
-A CHAIN -p 47 -j ACCEPT
-A CHAIN -p esp -j ACCEPT
-A CHAIN -m length --length 41:60 -m tos --tos 0x10 -j ACCEPT
-A CHAIN -m conntrack --ctstate INVALID -m length --length 30:45 -j ACCEPT
-A CHAIN ! -p udp -m length --length 100:2000 -j ACCEPT
COMMIT
"""
WORDS = {
    Family.IPV4: {"ICMP": "icmp", "KIND": "-m icmp --icmp-type", "HOPS": "-m ttl --ttl-lt"},
    Family.IPV6: {
        "ICMP": "ipv6-icmp", "KIND": "-m icmp6 --icmpv6-type", "HOPS": "-m hl --hl-lt",
    },
}  # fmt: skip


def rules(family: Family, chain: str) -> str:
    text = RULES.replace("CHAIN", chain)
    for word, meaning in WORDS[family].items():
        text = text.replace(word, meaning)
    return text


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("chain", ["INPUT", "FORWARD"])
@pytest.mark.parametrize("family", list(Family))
def test_odd_frames_are_decided_as_by_iptables_or_left_to_it(
    tmp_path: Path, family: Family, chain: str, backend: Backend
) -> None:
    text = rules(family, chain)
    ruleset = read_text(text, family=family, backend=backend)
    plan = compile_ruleset(ruleset, (("filter", chain),))
    flat = plan.chains["filter", chain].flat
    with ExitStack() as stack:
        host = stack.enter_context(
            LabHost.build(["eth7", "eth8"], tmp_path / "lock", ruleset, backend, text.encode())
        )
        devices = host.topology.devices
        options = Options(
            mode=Mode.FORCED,
            chain=chain,
            interfaces={device.index: device.name for device in devices.values()},
            out_interface="eth8",
            trace=Trace.BY_ID,
        )
        if chain == "FORWARD":
            host.topology.to_forward(family, "eth8")
        with host.topology.firewall.inside():
            observer = stack.enter_context(Observer.attach([family], [Hook[chain]]))
            classifier = stack.enter_context(Classifier.load(assemble([plan]), options))
            classifier.attach(devices["eth7"].index)
        send(host, OddFrames(1, family, devices["eth7"].mac))
        found = Counter(
            compare(classifier.record(number), seen, flat)
            for number, seen in enumerate(observer.records()[: FRAMES + 1])
        )
    wrong = {outcome: count for outcome, count in found.items() if "but iptables" in outcome}
    assert not wrong
    assert found["agrees"] > FRAMES / 3
    assert found["left to iptables"] > FRAMES / 20


def send(host: LabHost, frames: OddFrames) -> None:
    with host.topology.peer.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire:
        wire.bind(("p1", 0))
        for number in range(1, FRAMES + 1):
            wire.send(frames.frame(number))
            if number % 200 == 0:
                time.sleep(0.005)
    time.sleep(0.3)


def compare(record, seen, flat) -> str:
    if record is None or not seen["before"]:
        return "did not come to the chain"
    if record.code == 0 or record.function is None:
        return "left to iptables"
    states = int(seen["states"])
    if seen["before"] != 1 or states & (states - 1):
        return "came twice"
    allowed = possible_verdicts(record.function.by_state()[states], flat)
    verdict = "ACCEPT" if seen["after"] else "DROP"
    if allowed is None or verdict in allowed:
        return "agrees"
    return f"{record.outcome.name} of {record.entries}, but iptables: {verdict}"
