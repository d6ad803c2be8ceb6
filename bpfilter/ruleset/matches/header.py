"""The matches of a rule's header: -p, -s, -d, -i, -o, -f (ip_tables.c: ip_packet_match)."""

from __future__ import annotations

import socket

from bpfilter.ruleset.fields import Family, Field, Intervals, MaskedValue, NamePattern, Term
from bpfilter.ruleset.matches.common import BadWord, number, plain_number
from bpfilter.ruleset.model import Match

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "egp": 8, "udp": 17, "dccp": 33, "ipv6": 41,
    "gre": 47, "esp": 50, "ipv6-crypt": 50, "ah": 51, "ipv6-auth": 51, "ipv6-icmp": 58,
    "icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60,
    "ospf": 89, "pim": 103, "ipcomp": 108,
    "vrrp": 112, "l2tp": 115, "sctp": 132, "mobility-header": 135, "ipv6-mh": 135, "mh": 135,
    "udplite": 136, "all": 0,
}  # fmt: skip


_WIDTHS = {Family.IPV4: (32, (1 << 32) - 1), Family.IPV6: (128, (1 << 128) - 1)}


def protocol_number(word: str) -> int:
    """A protocol's number by name, number or /etc/protocols."""
    if plain_number(word) is not None:
        return number(word, 255)
    lowered = word.lower()
    if lowered in PROTOCOLS:
        return PROTOCOLS[lowered]
    try:
        return socket.getprotobyname(lowered)
    except (OSError, ValueError):
        raise BadWord("no such protocol", word, "use the protocol's number") from None


def protocol(word: str, negated: bool) -> Match:
    value = protocol_number(word)
    words = (*_not(negated), "-p", word)
    if value == 0:
        if negated:
            raise BadWord("a rule would never match", word, "leave `! -p all` out")
        return Match("protocol", words, ((),), header=True)
    values = Intervals.single(value)
    values = values.complement(8) if negated else values
    return Match("protocol", words, ((Term(Field.PROTOCOL, values),),), header=True)


def interface(flag: str, word: str, negated: bool) -> Match:
    """-i or -o. A lone `+` matches every name."""
    if not word or len(word.encode("utf-8", "surrogateescape")) > 15:
        raise BadWord("an interface name has 1 to 15 characters", word)
    field = Field.IN_INTERFACE if flag == "-i" else Field.OUT_INTERFACE
    words = (*_not(negated), flag, word)
    if word == "+" and not negated:
        return Match(str(field), words, ((),), header=True)
    return Match(str(field), words, ((Term(field, NamePattern(word), negated),),), header=True)


def fragment(negated: bool) -> Match:
    values = Intervals.single(0 if negated else 1)
    return Match(
        "fragment", (*_not(negated), "-f"), ((Term(Field.FRAGMENT, values),),), header=True
    )


def address(flag: str, word: str, negated: bool, family: Family) -> Match:
    """-s or -d with one address, prefix or mask. Raises BadWord for host names."""
    field = Field.SOURCE if flag == "-s" else Field.DESTINATION
    words = ("!", flag, word) if negated else (flag, word)
    value, mask = parse_network(word, family)
    if mask == 0 and not negated:
        return Match(field.value, words, ((),), True)
    term = network_term(field, value, mask, negated, family)
    return Match(field.value, words, ((term,),), True)


def network_term(field: Field, value: int, mask: int, negated: bool, family: Family) -> Term:
    bits, full = _WIDTHS[family]
    inverse = mask ^ full
    value &= mask
    if inverse & (inverse + 1) == 0:
        values = Intervals(((value, value | inverse),))
        return Term(field, values.complement(bits) if negated else values)
    return Term(field, MaskedValue(mask, value), negated)


def parse_network(word: str, family: Family) -> tuple[int, int]:
    """(address, mask) of `a`, `a/len` or `a/mask` (xtables_ipparse_multiple, parse_ipmask)."""
    text, slash, suffix = word.partition("/")
    value = parse_address(text, family)
    bits, full = _WIDTHS[family]
    if not slash:
        return value, full
    length = plain_number(suffix)
    if length is None:
        return value, _parse_mask(suffix, family)
    if length > bits:
        raise BadWord(f"a prefix length is 0 to {bits}", word)
    return value, full ^ (full >> length)


def _parse_mask(text: str, family: Family) -> int:
    if family is Family.IPV4 and text.count(".") != 3:
        raise BadWord("not a mask", text, "write a prefix length or four numbers")
    return parse_address(text, family)


def parse_address(text: str, family: Family) -> int:
    """An address without host names. IPv4 takes C numbers and completes short forms with zeros."""
    six = family is Family.IPV6
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, text))
    except (OSError, ValueError):
        if six:
            raise _not_an_address(text, "IPv6") from None
    parts = text.split(".")
    values = [plain_number(part) for part in parts]
    value = 0
    for part in [*values, *[0] * (4 - len(values))]:
        if part is None or part > 255 or len(parts) > 4:
            raise _not_an_address(text, "IPv4")
        value = value << 8 | part
    return value


def _not_an_address(text: str, kind: str) -> BadWord:
    return BadWord(
        f"not an {kind} address",
        text,
        "host names are not resolved: what they mean changes; write the address",
    )


def _not(negated: bool) -> tuple[str, ...]:
    return ("!",) if negated else ()
