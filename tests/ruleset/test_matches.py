"""What each static match means, at its boundaries; every match module is covered."""

from __future__ import annotations

import pytest

from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family, Field, Intervals, MaskedValue, NamePattern, Term
from bpfilter.ruleset.matches.registry import STATIC
from bpfilter.ruleset.model import Match, StateEffect
from bpfilter.ruleset.read import read_text

V4, V6 = Family.IPV4, Family.IPV6


def matches(words: str, family: Family = V4) -> tuple[Match, ...]:
    text = f"*filter\n-A INPUT {words} -j ACCEPT\nCOMMIT\n"
    return read_text(text, family=family).tables["filter"].chains["INPUT"].rules[0].matches


def ranges(words: str, field: Field, family: Family = V4) -> tuple[tuple[int, int], ...]:
    """The values that the last match of these words allows for a field."""
    alternatives = matches(words, family)[-1].alternatives
    assert alternatives is not None
    (terms,) = alternatives
    (values,) = [term.values for term in terms if term.field is field]
    assert isinstance(values, Intervals)
    return values.ranges


CASES = [
    ("-s 10.0.0.0/8", Field.SOURCE, ((0x0A000000, 0x0AFFFFFF),)),
    ("-s 10.1.2.3", Field.SOURCE, ((0x0A010203, 0x0A010203),)),
    ("! -d 128.0.0.0/1", Field.DESTINATION, ((0, 0x7FFFFFFF),)),
    ("-p tcp", Field.PROTOCOL, ((6, 6),)),
    ("! -p 1", Field.PROTOCOL, ((0, 0), (2, 255))),
    ("-f", Field.FRAGMENT, ((1, 1),)),
    ("-p tcp -m tcp --dport 80:90", Field.DESTINATION_PORT, ((80, 90),)),
    ("-p tcp -m tcp --dport :90", Field.DESTINATION_PORT, ((0, 90),)),
    ("-p tcp -m tcp --sport 1024:", Field.SOURCE_PORT, ((1024, 65535),)),
    ("-p tcp -m tcp --dport ssh", Field.DESTINATION_PORT, ((22, 22),)),
    ("-p udp -m udp ! --dport 53", Field.DESTINATION_PORT, ((0, 52), (54, 65535))),
    ("-p sctp -m sctp --dport 5000", Field.DESTINATION_PORT, ((5000, 5000),)),
    ("-p dccp -m dccp --sport 5", Field.SOURCE_PORT, ((5, 5),)),
    ("-p udplite -m udplite --sport 5", Field.SOURCE_PORT, ((5, 5),)),
    ("-p tcp -m multiport --dports 22,80:81", Field.DESTINATION_PORT, ((22, 22), (80, 81))),
    ("-p icmp -m icmp --icmp-type 8", Field.ICMP_TYPE, ((0x800, 0x8FF),)),
    ("-p icmp -m icmp --icmp-type 3/4", Field.ICMP_TYPE, ((0x304, 0x304),)),
    ("-p icmp -m icmp --icmp-type host-unreachable", Field.ICMP_TYPE, ((0x301, 0x301),)),
    ("-m iprange --src-range 10.0.0.5-10.0.0.9", Field.SOURCE, ((0x0A000005, 0x0A000009),)),
    ("-m length --length 100:200", Field.LENGTH, ((100, 200),)),
    ("-m length --length 100:", Field.LENGTH, ((100, 65535),)),
    ("-m ttl --ttl-lt 5", Field.TTL, ((0, 4),)),
    ("-m ttl --ttl-gt 5", Field.TTL, ((6, 255),)),
    ("-m dscp --dscp 0x2e", Field.TOS, ((0xB8, 0xBB),)),
    ("-m dscp --dscp-class EF", Field.TOS, ((0xB8, 0xBB),)),
    ("-m tos --tos 0x10/0xff", Field.TOS, ((0x10, 0x10),)),
    ("-m mac --mac-source 00:00:00:00:01:02", Field.MAC_SOURCE, ((0x102, 0x102),)),
    ("-m pkttype --pkt-type broadcast", Field.PACKET_TYPE, ((1, 1),)),
    ("-m addrtype --dst-type LOCAL", Field.DESTINATION_TYPE, ((2, 2),)),
    ("-m addrtype ! --src-type UNICAST", Field.SOURCE_TYPE, ((0, 0), (2, 15))),
    ("-m conntrack --ctstate RELATED,ESTABLISHED", Field.STATE, ((1, 2),)),
    ("-m conntrack ! --ctstate NEW", Field.STATE, ((1, 4),)),
    ("-m state --state INVALID", Field.STATE, ((3, 3),)),
]


@pytest.mark.parametrize(("words", "field", "expected"), CASES, ids=[case[0] for case in CASES])
def test_a_static_match_allows_exactly_these_values(
    words: str, field: Field, expected: tuple[tuple[int, int], ...]
) -> None:
    assert ranges(words, field) == expected


IPV6_CASES = [
    ("-s 2001:db8::/32", Field.SOURCE, ((0x20010DB8 << 96, (0x20010DB9 << 96) - 1),)),
    ("-p ipv6-icmp -m icmp6 --icmpv6-type 128", Field.ICMP_TYPE, ((0x8000, 0x80FF),)),
    ("-p ipv6-icmp -m icmp6 --icmpv6-type 1/4", Field.ICMP_TYPE, ((0x104, 0x104),)),
    ("-m hl --hl-eq 255", Field.TTL, ((255, 255),)),
]


@pytest.mark.parametrize(("words", "field", "expected"), IPV6_CASES, ids=[c[0] for c in IPV6_CASES])
def test_a_static_ipv6_match_allows_exactly_these_values(
    words: str, field: Field, expected: tuple[tuple[int, int], ...]
) -> None:
    assert ranges(words, field, V6) == expected


def test_every_static_match_has_a_case() -> None:
    words = " ".join(case[0] for case in [*CASES, *IPV6_CASES]) + OTHERS
    missing = [name for name in STATIC if f"-m {name} " not in words]
    assert missing == []


OTHERS = " -m comment --comment x -m ecn --ecn-ip-ect 1 "


def test_syn_is_syn_alone_of_four_flags() -> None:
    allowed = ranges("-p tcp -m tcp --syn", Field.TCP_FLAGS)
    values = {value for low, high in allowed for value in range(low, high + 1)}
    assert values == {flags for flags in range(256) if flags & 0x17 == 0x02}


def test_ecn_of_the_ip_header_is_the_low_bits_of_tos() -> None:
    allowed = ranges("-m ecn --ecn-ip-ect 1", Field.TOS)
    values = {value for low, high in allowed for value in range(low, high + 1)}
    assert values == {tos for tos in range(256) if tos & 3 == 1}


def test_ports_of_either_side_are_two_alternatives_that_exclude_each_other() -> None:
    found = matches("-p tcp -m multiport --ports 53")[-1].alternatives
    assert found is not None
    first, second = found
    assert [term.field for term in first] == [Field.SOURCE_PORT]
    assert [term.field for term in second] == [Field.SOURCE_PORT, Field.DESTINATION_PORT]


def test_a_mask_with_a_hole_is_kept_as_a_mask() -> None:
    found = matches("! -s 10.0.5.0/255.0.255.0")[0].alternatives
    assert found == ((Term(Field.SOURCE, MaskedValue(0xFF00FF00, 0x0A000500), True),),)


def test_an_interface_pattern_keeps_its_wildcard() -> None:
    assert matches("-i eth+")[0].alternatives == ((Term(Field.IN_INTERFACE, NamePattern("eth+")),),)


@pytest.mark.parametrize(
    "words",
    [
        "-p tcp -m tcp --tcp-option 8",
        "-m conntrack --ctstate DNAT",
        "-m conntrack --ctorigdst 10.0.0.1",
        "-m addrtype --dst-type LOCAL --limit-iface-in",
        "-p tcp -m ecn --ecn-tcp-cwr",
        "-m owner --uid-owner 0",
        "-m something-new --anything goes here",
    ],
)
def test_what_the_hook_cannot_know_is_dynamic(words: str) -> None:
    assert matches(words)[-1].dynamic


@pytest.mark.parametrize(
    ("words", "effect"),
    [
        ("-m limit --limit 3/min", StateEffect.INSTANCE),
        ("-m connlimit --connlimit-above 3", StateEffect.INSTANCE),
        ("-m recent --set --name x --rsource", StateEffect.NAMED),
        ("-m mark --mark 1", StateEffect.NONE),
        ("-m something-new --anything", StateEffect.INSTANCE),
    ],
)
def test_a_dynamic_match_says_what_state_it_leaves(words: str, effect: StateEffect) -> None:
    assert matches(words)[-1].effect is effect


@pytest.mark.parametrize(
    ("words", "offending"),
    [
        ("-p tcp --dport 99999", "99999"),
        ("-p tcp --dport nosuchservice", "nosuchservice"),
        ("-s example.org", "example.org"),
        ("-s 10.0.0.0/33", "10.0.0.0/33"),
        ("-p nosuchprotocol", "nosuchprotocol"),
        ("-m conntrack --ctstate OLD", "OLD"),
        ("-p icmp -m icmp --icmp-type nosuch", "nosuch"),
        ("--nosuchoption 5", "--nosuchoption"),
        ("-i averyveryverylongname", "averyveryverylongname"),
        ("-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", None),
    ],
)
def test_a_bad_word_is_refused_by_name(words: str, offending: str | None) -> None:
    with pytest.raises(RulesetRefused) as refusal:
        matches(words)
    assert refusal.value.line == 2
    if offending is not None:
        assert refusal.value.word == offending
