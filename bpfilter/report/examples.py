"""For every residual function of a chain a packet that meets it, as one line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bpfilter.analysis.describe import describe_value
from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.ir import Function, Space
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.sample import PORT_PROTOCOLS, sample_packets
from bpfilter.compiler.walk import Packet
from bpfilter.report.words import PROTOCOLS
from bpfilter.ruleset.fields import Family, Field

_PACKETS = 3000
_USUAL: Mapping[Field, int] = {Field.LENGTH: 100, Field.TTL: 64, Field.TCP_FLAGS: 2}
"""Values that need no word."""
_WORDS = {
    Field.IN_INTERFACE: "in",
    Field.OUT_INTERFACE: "out",
    Field.TCP_FLAGS: "flags",
    Field.ICMP_TYPE: "type",
    Field.LENGTH: "length",
    Field.TTL: "ttl",
    Field.TOS: "tos",
}


def examples(chain: ChainPlan) -> Mapping[Function, str]:
    """A packet for each function that sampling meets; rare functions may be missing."""
    if len(chain.functions) < 2:
        return {}
    packets = sample_packets(chain.flat, np.random.default_rng(1), _PACKETS)
    found: dict[Function, Packet] = {}
    for function, packet in zip(functions_of(chain.tables, packets), packets, strict=True):
        found.setdefault(function, packet)
    space = chain.flat.space
    return {function: packet_line(packet, space) for function, packet in found.items()}


def packet_line(packet: Packet, space: Space) -> str:
    """A packet as `tcp 192.0.2.1:40000 → 10.0.0.5:22 in eth0`; usual values are left out."""
    protocol = packet[Field.PROTOCOL]
    ends = [
        _end(packet, address, port, space)
        for address, port in (
            (Field.SOURCE, Field.SOURCE_PORT),
            (Field.DESTINATION, Field.DESTINATION_PORT),
        )
    ]
    words = [PROTOCOLS.get(protocol, f"protocol {protocol}"), " → ".join(ends)]
    for field, word in _WORDS.items():
        value = packet.get(field, 0)
        if value and value != _USUAL.get(field):
            words.append(f"{word} {describe_value(field, value, space)}")
    return " ".join(words)


def _end(packet: Packet, address: Field, port: Field, space: Space) -> str:
    written = describe_value(address, packet[address], space)
    if packet[Field.PROTOCOL] not in PORT_PROTOCOLS:
        return written
    host = written if space.family is Family.IPV4 else f"[{written}]"
    return f"{host}:{packet[port]}"
