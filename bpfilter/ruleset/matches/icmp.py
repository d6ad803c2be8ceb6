"""icmp and icmp6: type and code (net/ipv4/netfilter/ip_tables.c: icmp_match)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfilter.ruleset.fields import Family, Field, Intervals
from bpfilter.ruleset.matches.common import (
    ALWAYS,
    BadWord,
    Interpreter,
    Meaning,
    Option,
    intervals_term,
    number,
    plain_number,
)

Names = Mapping[str, tuple[int, int, int]]

ICMP: Names = {
    "any": (255, 0, 255), "echo-reply": (0, 0, 255), "pong": (0, 0, 255),
    "destination-unreachable": (3, 0, 255), "network-unreachable": (3, 0, 0),
    "host-unreachable": (3, 1, 1), "protocol-unreachable": (3, 2, 2),
    "port-unreachable": (3, 3, 3), "fragmentation-needed": (3, 4, 4),
    "source-route-failed": (3, 5, 5), "network-unknown": (3, 6, 6), "host-unknown": (3, 7, 7),
    "network-prohibited": (3, 9, 9), "host-prohibited": (3, 10, 10),
    "TOS-network-unreachable": (3, 11, 11), "TOS-host-unreachable": (3, 12, 12),
    "communication-prohibited": (3, 13, 13), "host-precedence-violation": (3, 14, 14),
    "precedence-cutoff": (3, 15, 15), "source-quench": (4, 0, 255), "redirect": (5, 0, 255),
    "network-redirect": (5, 0, 0), "host-redirect": (5, 1, 1), "TOS-network-redirect": (5, 2, 2),
    "TOS-host-redirect": (5, 3, 3), "echo-request": (8, 0, 255), "ping": (8, 0, 255),
    "router-advertisement": (9, 0, 255), "router-solicitation": (10, 0, 255),
    "time-exceeded": (11, 0, 255), "ttl-exceeded": (11, 0, 255),
    "ttl-zero-during-transit": (11, 0, 0), "ttl-zero-during-reassembly": (11, 1, 1),
    "parameter-problem": (12, 0, 255), "ip-header-bad": (12, 0, 0),
    "required-option-missing": (12, 1, 1), "timestamp-request": (13, 0, 255),
    "timestamp-reply": (14, 0, 255), "address-mask-request": (17, 0, 255),
    "address-mask-reply": (18, 0, 255),
}  # fmt: skip

ICMP6: Names = {
    "destination-unreachable": (1, 0, 255), "no-route": (1, 0, 0),
    "communication-prohibited": (1, 1, 1), "beyond-scope": (1, 2, 2),
    "address-unreachable": (1, 3, 3), "port-unreachable": (1, 4, 4), "failed-policy": (1, 5, 5),
    "reject-route": (1, 6, 6), "packet-too-big": (2, 0, 255), "time-exceeded": (3, 0, 255),
    "ttl-exceeded": (3, 0, 255), "ttl-zero-during-transit": (3, 0, 0),
    "ttl-zero-during-reassembly": (3, 1, 1), "parameter-problem": (4, 0, 255),
    "bad-header": (4, 0, 0), "unknown-header-type": (4, 1, 1), "unknown-option": (4, 2, 2),
    "echo-request": (128, 0, 255), "ping": (128, 0, 255), "echo-reply": (129, 0, 255),
    "pong": (129, 0, 255), "mld-listener-query": (130, 0, 255),
    "mld-listener-report": (131, 0, 255), "mld-listener-done": (132, 0, 255),
    "mld-listener-reduction": (132, 0, 255), "router-solicitation": (133, 0, 255),
    "router-advertisement": (134, 0, 255), "neighbour-solicitation": (135, 0, 255),
    "neighbor-solicitation": (135, 0, 255), "neighbour-advertisement": (136, 0, 255),
    "neighbor-advertisement": (136, 0, 255), "redirect": (137, 0, 255),
}  # fmt: skip


def interpreter(names: Names) -> Interpreter:
    lowered = {name.lower(): value for name, value in names.items()}

    def interpret(options: Sequence[Option], family: Family) -> Meaning:
        option = options[0]
        kind, low, high = _parse(option.values[0], lowered)
        if kind == 255 and family is Family.IPV4:
            return Meaning(() if option.negated else ALWAYS)
        values = Intervals.single(kind << 8 | low, kind << 8 | high)
        return Meaning(((intervals_term(Field.ICMP_TYPE, values, option.negated, family),),))

    return interpret


def _parse(word: str, names: Names) -> tuple[int, int, int]:
    """A name, an unambiguous beginning of one, `type` or `type/code`."""
    kind, slash, code = word.partition("/")
    if plain_number(kind) is not None:
        low, high = (number(code, 255),) * 2 if slash else (0, 255)
        return number(kind, 255), low, high
    text = word.lower()
    if text in names:
        return names[text]
    found = {value for name, value in names.items() if name.startswith(text)}
    if text and len(found) == 1:
        return found.pop()
    raise BadWord("not an ICMP type", word, "write its number, as type or type/code")


def icmp_type(word: str, family: Family) -> int:
    """One `type << 8 | code` by name, `type` or `type/code`; the lowest code if none is said."""
    kind, low, _ = _parse(word, ICMP if family is Family.IPV4 else ICMP6)
    return kind << 8 | low
