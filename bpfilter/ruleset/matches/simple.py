"""Matches of one numeric field: iprange, length, ttl, hl, tos, dscp, ecn, mac, pkttype."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bpfilter.ruleset.fields import Family, Field, Intervals
from bpfilter.ruleset.matches.common import (
    ALWAYS,
    DYNAMIC,
    BadWord,
    Meaning,
    Option,
    conjunction,
    intervals_term,
    number,
)
from bpfilter.ruleset.matches.header import parse_address
from bpfilter.ruleset.matches.ports import masked

IPRANGE_OPTIONS = {"--src-range": 1, "--dst-range": 1}
LENGTH_OPTIONS = {"--length": 1}
TTL_OPTIONS = {"--ttl-eq": 1, "--ttl-lt": 1, "--ttl-gt": 1, "--ttl": 1}
HL_OPTIONS = {"--hl-eq": 1, "--hl-lt": 1, "--hl-gt": 1, "--hl": 1}
TOS_OPTIONS = {"--tos": 1}
DSCP_OPTIONS = {"--dscp": 1, "--dscp-class": 1}
ECN_OPTIONS = {"--ecn-tcp-cwr": 0, "--ecn-tcp-ece": 0, "--ecn-ip-ect": 1}
MAC_OPTIONS = {"--mac-source": 1}
PKTTYPE_OPTIONS = {"--pkt-type": 1}

TOS_NAMES = {
    "minimize-delay": 0x10, "maximize-throughput": 0x08, "maximize-reliability": 0x04,
    "minimize-cost": 0x02, "normal-service": 0x00,
}  # fmt: skip
DSCP_CLASSES = {
    "cs0": 0, "cs1": 8, "cs2": 16, "cs3": 24, "cs4": 32, "cs5": 40, "cs6": 48, "cs7": 56,
    "be": 0, "af11": 10, "af12": 12, "af13": 14, "af21": 18, "af22": 20, "af23": 22,
    "af31": 26, "af32": 28, "af33": 30, "af41": 34, "af42": 36, "af43": 38, "ef": 46,
}  # fmt: skip


def iprange(options: Sequence[Option], family: Family) -> Meaning:
    terms = []
    for option in options:
        low, dash, high = option.values[0].partition("-")
        first = parse_address(low, family)
        last = parse_address(high, family) if dash else first
        field = Field.SOURCE if option.name == "--src-range" else Field.DESTINATION
        values = Intervals.of([(first, last)])
        terms.append(intervals_term(field, values, option.negated, family))
    return conjunction(terms)


def length(options: Sequence[Option], family: Family) -> Meaning:
    terms = []
    for option in options:
        low, colon, high = option.values[0].partition(":")
        first = number(low, 65535) if low else 0
        last = (number(high, 65535) if high else 65535) if colon else first
        values = Intervals.of([(first, last)])
        terms.append(intervals_term(Field.LENGTH, values, option.negated, family))
    return conjunction(terms)


def hops(options: Sequence[Option], family: Family) -> Meaning:
    """ttl and hl: equal, less than, greater than."""
    terms = []
    for option in options:
        value = number(option.values[0], 255)
        if option.name.endswith("-lt"):
            values = Intervals.of([(0, value - 1)])
        elif option.name.endswith("-gt"):
            values = Intervals.of([(value + 1, 255)])
        else:
            values = Intervals.single(value)
        terms.append(intervals_term(Field.TTL, values, option.negated, family))
    return conjunction(terms)


def tos(options: Sequence[Option], family: Family) -> Meaning:
    terms = []
    for option in options:
        word, slash, mask_word = option.values[0].partition("/")
        if word.lower() in TOS_NAMES:
            value, mask = TOS_NAMES[word.lower()], 0x3F
        else:
            value = number(word, 255)
            mask = number(mask_word, 255) if slash else 0xFF
        terms.append(intervals_term(Field.TOS, masked(mask, value), option.negated, family))
    return conjunction(terms)


def dscp(options: Sequence[Option], family: Family) -> Meaning:
    terms = []
    for option in options:
        word = option.values[0]
        if option.name == "--dscp-class":
            if word.lower() not in DSCP_CLASSES:
                raise BadWord("not a DSCP class", word, "write its number with --dscp")
            value = DSCP_CLASSES[word.lower()]
        else:
            value = number(word, 63)
        values = Intervals.single(value << 2, value << 2 | 3)
        terms.append(intervals_term(Field.TOS, values, option.negated, family))
    return conjunction(terms)


def ecn(options: Sequence[Option], family: Family) -> Meaning:
    """The IP part is the low bits of TOS; the TCP bits also demand TCP and stay dynamic."""
    terms = []
    for option in options:
        if option.name != "--ecn-ip-ect":
            return DYNAMIC
        values = masked(3, number(option.values[0], 3))
        terms.append(intervals_term(Field.TOS, values, option.negated, family))
    return conjunction(terms)


def mac(options: Sequence[Option], family: Family) -> Meaning:
    terms = []
    for option in options:
        word = option.values[0]
        if not re.fullmatch(r"\s*[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", word):
            raise BadWord("not a MAC address", word, "write six bytes as 00:11:22:33:44:55")
        value = 0
        for part in word.split(":"):
            value = value << 8 | int(part, 16)
        values = Intervals.single(value)
        terms.append(intervals_term(Field.MAC_SOURCE, values, option.negated, family))
    return conjunction(terms)


def pkttype(options: Sequence[Option], family: Family) -> Meaning:
    names = {"unicast": 0, "host": 0, "broadcast": 1, "bcast": 1, "multicast": 2, "mcast": 2,
        "otherhost": 3}  # fmt: skip
    terms = []
    for option in options:
        word = option.values[0].lower()
        if word not in names:
            raise BadWord("not a packet type", word, "unicast, broadcast or multicast")
        values = Intervals.single(names[word])
        terms.append(intervals_term(Field.PACKET_TYPE, values, option.negated, family))
    return conjunction(terms)


def comment(options: Sequence[Option], family: Family) -> Meaning:
    return Meaning(ALWAYS)
