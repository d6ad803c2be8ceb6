"""Every match by name: the options it takes and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.matches import addrtype, dynamic, icmp, multiport, ports, simple, state
from bpfilter.ruleset.matches.common import Interpreter


@dataclass(frozen=True, slots=True)
class Spec:
    """A match: option → number of arguments; no interpreter means always dynamic.

    An option that is missing from `options` takes the words up to the next option if `open` is
    true, and is refused otherwise. `required` demands at least one option.
    """

    options: Mapping[str, int]
    interpret: Interpreter | None = None
    family: Family | None = None
    open: bool = False
    required: bool = True


STATIC: Mapping[str, Spec] = {
    "tcp": Spec(ports.TCP_OPTIONS, ports.ports("tcp"), required=False),
    "udp": Spec(ports.PORT_OPTIONS, ports.ports("udp"), required=False),
    "udplite": Spec(ports.PORT_OPTIONS, ports.ports("udp"), required=False),
    "sctp": Spec(ports.CHUNK_OPTIONS, ports.ports("sctp"), required=False),
    "dccp": Spec(ports.DCCP_OPTIONS, ports.ports("dccp"), required=False),
    "multiport": Spec(multiport.OPTIONS, multiport.interpret),
    "icmp": Spec({"--icmp-type": 1}, icmp.interpreter(icmp.ICMP), Family.IPV4, required=False),
    "icmp6": Spec({"--icmpv6-type": 1}, icmp.interpreter(icmp.ICMP6), Family.IPV6, required=False),
    "state": Spec(state.STATE_OPTIONS, state.interpret),
    "conntrack": Spec(state.CONNTRACK_OPTIONS, state.interpret),
    "iprange": Spec(simple.IPRANGE_OPTIONS, simple.iprange),
    "length": Spec(simple.LENGTH_OPTIONS, simple.length),
    "ttl": Spec(simple.TTL_OPTIONS, simple.hops, Family.IPV4),
    "hl": Spec(simple.HL_OPTIONS, simple.hops, Family.IPV6),
    "tos": Spec(simple.TOS_OPTIONS, simple.tos),
    "dscp": Spec(simple.DSCP_OPTIONS, simple.dscp),
    "ecn": Spec(simple.ECN_OPTIONS, simple.ecn),
    "mac": Spec(simple.MAC_OPTIONS, simple.mac),
    "pkttype": Spec(simple.PKTTYPE_OPTIONS, simple.pkttype),
    "addrtype": Spec(addrtype.OPTIONS, addrtype.interpret),
    "comment": Spec({"--comment": 1}, simple.comment),
}
"""Matches that are static, at least with some of their options."""

ALIASES: Mapping[tuple[str, Family], str] = {
    ("icmpv6", Family.IPV6): "icmp6",
    ("ipv6-icmp", Family.IPV6): "icmp6",
}

IMPLICIT: Mapping[int, str] = {
    6: "tcp", 17: "udp", 136: "udplite", 132: "sctp", 33: "dccp", 1: "icmp", 58: "icmp6",
}  # fmt: skip
"""The match that a protocol loads when an option of it stands without -m."""


def spec(name: str, family: Family) -> tuple[str, Spec]:
    """A match's real name and its spec; any name is accepted, unknown ones are opaque."""
    real = ALIASES.get((name, family), name)
    if real in STATIC:
        return real, STATIC[real]
    return real, Spec(dynamic.ARITY.get(real, {}), open=True, required=False)
