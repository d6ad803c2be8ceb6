"""tcp, udp, udplite, sctp, dccp: ports, TCP flags (net/netfilter/xt_tcpudp.c, xt_sctp.c)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfilter.ruleset.fields import EMPTY, Family, Field, Intervals, Term
from bpfilter.ruleset.matches.common import (
    DYNAMIC,
    BadWord,
    Interpreter,
    Meaning,
    Option,
    conjunction,
    intervals_term,
    number,
    port_range,
)

FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 0x3F, "NONE": 0}

REFUSE_REVERSED = ("tcp", "sctp")
"""The others take a reversed range, which never matches (libxt_udp.c, libxt_dccp.c)."""

DIFFER = ("tcp", "udp")
"""Where iptables-nft (1.8.9) makes something else of negated ports than legacy does.

`! --sport 0:65535` is dropped, so it always matches; see also `_merged`. Such matches are dynamic:
the residual is restored by the same tool, so it means what the rule means."""

PORT_OPTIONS: Mapping[str, int] = {
    "--sport": 1, "--source-port": 1, "--dport": 1, "--destination-port": 1,
}  # fmt: skip
TCP_OPTIONS: Mapping[str, int] = {
    **PORT_OPTIONS, "--syn": 0, "--tcp-flags": 2, "--tcp-option": 1,
}  # fmt: skip
CHUNK_OPTIONS: Mapping[str, int] = {**PORT_OPTIONS, "--chunk-types": 2}
DCCP_OPTIONS: Mapping[str, int] = {**PORT_OPTIONS, "--dccp-types": 1, "--dccp-option": 1}


def ports(protocol: str) -> Interpreter:
    """The interpreter of a transport protocol's match; options beyond ports make it dynamic."""

    def interpret(options: Sequence[Option], family: Family) -> Meaning:
        terms = []
        dynamic = False
        for option in options:
            term = _term(option, protocol, family)
            dynamic = dynamic or term is None
            if term is not None:
                terms.append(term)
        if protocol in DIFFER and _merged(options, protocol):
            dynamic = True
        return DYNAMIC if dynamic else conjunction(terms)

    return interpret


def _merged(options: Sequence[Option], protocol: str) -> bool:
    """Whether iptables-nft makes one comparison of two negated ports, which means "not both".

    add_nft_tcpudp of iptables 1.8.9 (iptables/nft.c): one port each, none of them 0.
    """
    ranges = [
        port_range(option.values[0], protocol)
        for option in options
        if option.name in PORT_OPTIONS and option.negated
    ]
    return len(ranges) == 2 and all(first == last != 0 for first, last in ranges)


def _term(option: Option, protocol: str, family: Family) -> Term | None:
    if option.name in PORT_OPTIONS:
        first, last = port_range(option.values[0], protocol)
        if first > last and protocol in REFUSE_REVERSED:
            raise BadWord("the range is reversed", option.values[0], f"write {last}:{first}")
        source = option.name in ("--sport", "--source-port")
        field = Field.SOURCE_PORT if source else Field.DESTINATION_PORT
        if option.negated and (first, last) == (0, 65535) and protocol in DIFFER:
            return None
        values = Intervals(((first, last),)) if first <= last else EMPTY
        return intervals_term(field, values, option.negated, family)
    if option.name == "--syn":
        return intervals_term(Field.TCP_FLAGS, masked(0x17, 0x02), option.negated, family)
    if option.name == "--tcp-flags":
        mask, wanted = (flags(word) for word in option.values)
        if not mask and (wanted or option.negated):
            return None  # never matches on legacy, always on nft (1.8.9)
        return intervals_term(Field.TCP_FLAGS, masked(mask, wanted), option.negated, family)
    if option.name == "--tcp-option" and not number(option.values[0], 255) >= 1:
        raise BadWord("a TCP option's number is 1 to 255", option.values[0])
    return None


def flags(word: str) -> int:
    """A comma list of TCP flag names as a mask of byte 13 of the header."""
    mask = 0
    for name in filter(None, word.split(",")):
        if name.upper() not in FLAGS:
            raise BadWord("not a TCP flag", name, f"flags are {', '.join(FLAGS)}")
        mask |= FLAGS[name.upper()]
    return mask


def masked(mask: int, value: int) -> Intervals:
    """Bytes `b` with `b & mask == value`."""
    return Intervals.of((b, b) for b in range(256) if b & mask == value)
