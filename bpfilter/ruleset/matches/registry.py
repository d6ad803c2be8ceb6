"""Every match by name: the options it takes and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.matches import addrtype, dynamic, icmp, multiport, ports, simple, state
from bpfilter.ruleset.matches.common import BadWord, Interpreter, Option

SAME: Mapping[str, str] = {
    "--source-port": "--sport", "--destination-port": "--dport",
    "--ttl": "--ttl-eq", "--hl": "--hl-eq",
}  # fmt: skip
"""Other names of options."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A match: option → number of arguments; no interpreter means always dynamic.

    An option that is missing from `options` takes the words up to the next option if `open` is
    true, and is refused otherwise. `required` demands at least one option. An option stands once,
    under any of its names; those in `plain` cannot be negated, and of
    each group in `exclusive` there is at most one. With `by_protocol` the rule needs `-p` with one
    of these protocols, and its interpreter is taken.
    """

    options: Mapping[str, int]
    interpret: Interpreter | None = None
    family: Family | None = None
    open: bool = False
    required: bool = True
    plain: frozenset[str] = frozenset()
    exclusive: tuple[frozenset[str], ...] = ()
    by_protocol: Mapping[int, Interpreter] | None = None

    def check(self, options: Sequence[Option], name: str) -> None:
        """Refuse what the tool refuses in the options of one match. Raises BadWord."""
        if self.required and not options:
            raise BadWord(f"match {name} lacks its options", name)
        if self.open:
            return
        found: set[str] = set()
        for option in options:
            real = SAME.get(option.name, option.name)
            if real in found:
                raise BadWord("this option can stand once", option.name)
            if option.negated and real in self.plain:
                raise BadWord("this option cannot be negated", option.name)
            found.add(real)
        for group in self.exclusive:
            if len(found & group) > 1:
                raise BadWord("these options exclude each other", " ".join(sorted(found & group)))


_HOPS = ("-eq", "-lt", "-gt")
STATIC: Mapping[str, Spec] = {
    "tcp": Spec(
        ports.TCP_OPTIONS,
        ports.ports("tcp"),
        required=False,
        exclusive=(frozenset({"--syn", "--tcp-flags"}),),
    ),
    "udp": Spec(ports.PORT_OPTIONS, ports.ports("udp"), required=False),
    "udplite": Spec(ports.PORT_OPTIONS, ports.ports("udp"), required=False),
    "sctp": Spec(ports.CHUNK_OPTIONS, ports.ports("sctp"), required=False),
    "dccp": Spec(ports.DCCP_OPTIONS, ports.ports("dccp"), required=False),
    "multiport": Spec(
        multiport.OPTIONS,
        exclusive=(frozenset(multiport.OPTIONS),),
        by_protocol={n: multiport.interpreter(p) for n, p in multiport.PROTOCOLS.items()},
    ),
    "icmp": Spec({"--icmp-type": 1}, icmp.interpreter(icmp.ICMP), Family.IPV4),
    "icmp6": Spec({"--icmpv6-type": 1}, icmp.interpreter(icmp.ICMP6), Family.IPV6),
    "state": Spec(state.STATE_OPTIONS, state.interpret),
    "conntrack": Spec(state.CONNTRACK_OPTIONS, state.interpret),
    "iprange": Spec(simple.IPRANGE_OPTIONS, simple.iprange),
    "length": Spec(simple.LENGTH_OPTIONS, simple.length),
    "ttl": Spec(
        simple.TTL_OPTIONS,
        simple.hops,
        Family.IPV4,
        plain=frozenset({"--ttl-lt", "--ttl-gt"}),
        exclusive=(frozenset(f"--ttl{suffix}" for suffix in _HOPS),),
    ),
    "hl": Spec(
        simple.HL_OPTIONS,
        simple.hops,
        Family.IPV6,
        plain=frozenset({"--hl-lt", "--hl-gt"}),
        exclusive=(frozenset(f"--hl{suffix}" for suffix in _HOPS),),
    ),
    "tos": Spec(simple.TOS_OPTIONS, simple.tos),
    "dscp": Spec(simple.DSCP_OPTIONS, simple.dscp, exclusive=(frozenset(simple.DSCP_OPTIONS),)),
    "ecn": Spec(simple.ECN_OPTIONS, simple.ecn),
    "mac": Spec(simple.MAC_OPTIONS, simple.mac),
    "pkttype": Spec(simple.PKTTYPE_OPTIONS, simple.pkttype),
    "addrtype": Spec(
        addrtype.OPTIONS, addrtype.interpret, plain=addrtype.LIMITS, exclusive=(addrtype.LIMITS,)
    ),
    "comment": Spec({"--comment": 1}, simple.comment, plain=frozenset({"--comment"})),
}
"""Matches that are static, at least with some of their options."""

ALIASES: Mapping[tuple[str, Family], str] = {
    ("icmpv6", Family.IPV6): "icmp6",
    ("ipv6-icmp", Family.IPV6): "icmp6",
}

IMPLICIT: Mapping[tuple[int, Family], str] = {
    **{
        (number, family): name
        for family in Family
        for number, name in {
            6: "tcp", 17: "udp", 132: "sctp", 33: "dccp", 50: "esp", 51: "ah", 108: "ipcomp",
        }.items()
    },
    (1, Family.IPV4): "icmp",
    (58, Family.IPV6): "icmp6",
    (135, Family.IPV6): "mh",
}  # fmt: skip
"""The match that a protocol loads when an option of it stands without -m."""


def spec(name: str, family: Family) -> tuple[str, Spec]:
    """A match's real name and its spec; any name is accepted, unknown ones are opaque."""
    real = ALIASES.get((name, family), name)
    if real in STATIC:
        return real, STATIC[real]
    options = dynamic.ARITY.get(real, {})
    return real, Spec(options, None, dynamic.FAMILIES.get(real), open=True, required=False)
