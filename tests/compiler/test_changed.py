"""Which packets an edit can concern: never one too few, and no more than its rules name."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest

from bpfilter.analysis.interpret import interpret
from bpfilter.compiler.changed import Hull, hulls_of
from bpfilter.compiler.classify import Classified, classify
from bpfilter.compiler.flatten import flatten
from bpfilter.compiler.ir import Verdict
from bpfilter.compiler.sample import sample_packets
from bpfilter.errors import BpfilterError, TooMuchEdited
from bpfilter.lab.generate import random_ruleset
from bpfilter.ruleset.edited import edit_between, plain
from bpfilter.ruleset.fields import STATES, Family, Field, field_bits
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import rule_words, write

TEXT = """*nat
:PREROUTING ACCEPT
-A PREROUTING -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 80
COMMIT
*filter
:INPUT DROP
:FORWARD ACCEPT
:OUTPUT ACCEPT
:jail -
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j jail
-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT
-A jail -s 192.0.2.9/32 -j DROP
-A jail -j RETURN
COMMIT
"""
ANY, PORTS = (0, 0), (0, 65535)


def hull(**chosen: tuple[int, int]) -> Hull:
    every = {
        "source": ANY,
        "destination": ANY,
        "protocols": (0, 255),
        "source_ports": PORTS,
        "destination_ports": PORTS,
    }
    return Hull(Family.IPV4, **{**every, **chosen})


def network(address: int, bits: int = 32) -> tuple[int, int]:
    return address, 0xFFFFFFFF >> (32 - bits) << (32 - bits)


def hulls_between(before: str, after: str, family: Family = Family.IPV4) -> tuple[Hull, ...]:
    edit = edit_between(before, after, family, Backend.NFT)
    return () if edit is None else hulls_of(edit.rules, family)


SSH = {"protocols": (6, 6), "destination_ports": (22, 22)}
EDITS: Mapping[str, tuple[str, str, set[Hull]]] = {
    "a ban": (
        "-A jail -j RETURN",
        "-A jail -s 198.51.100.7/32 -j REJECT\n-A jail -j RETURN",
        {hull(source=network(0xC6336407))},
    ),
    "an end of a ban": (
        "-A jail -s 192.0.2.9/32 -j DROP\n",
        "",
        {hull(source=network(0xC0000209))},
    ),
    "a rule in the place of another": (
        "--dport 443 -j ACCEPT",
        "--dport 444 -j ACCEPT",
        {
            hull(protocols=(6, 6), destination_ports=(443, 443)),
            hull(protocols=(6, 6), destination_ports=(444, 444)),
        },
    ),
    "a chain with its jump": (
        "-A INPUT -p tcp -m tcp --dport 22",
        "-A INPUT -s 10.0.0.0/8 -j new\n-A new -j DROP\n-A INPUT -p tcp -m tcp --dport 22",
        {hull(source=network(0x0A000000, 8))},
    ),
    "a chain away with its jump": (
        "-A INPUT -p tcp -m tcp --dport 22 -j jail\n",
        "",
        {hull(**SSH)},
    ),
    "a chain that nothing jumps to": (":jail -\n", ":jail -\n:idle -\n", set()),
    "several ports": (
        "-A jail -j RETURN",
        "-A jail -p udp -m multiport --dports 53,67:68 -j DROP\n-A jail -j RETURN",
        {hull(protocols=(17, 17), destination_ports=(53, 68))},
    ),
    "what is negated is not used but where it is a range": (
        "-A jail -j RETURN",
        "-A jail ! -s 10.0.0.0/8 -p tcp -m tcp ! --sport 1024:65535 -j DROP\n-A jail -j RETURN",
        {hull(protocols=(6, 6), source_ports=(0, 1023))},
    ),
    "what stands behind a dynamic match is left out": (
        "-A jail -j RETURN",
        "-A jail -p udp -m limit --limit 1/sec -m udp --dport 53 -j LOG\n-A jail -j RETURN",
        {hull(protocols=(17, 17))},
    ),
    "rules far from each other": (
        "-A jail -s 192.0.2.9/32 -j DROP\n-A jail -j RETURN\n",
        "-A jail -s 192.0.2.1/32 -j DROP\n-A jail -s 192.0.2.9/32 -j DROP\n-A jail -j RETURN\n"
        "-A jail -p udp -j DROP\n",
        {hull(source=network(0xC0000201)), hull(protocols=(17, 17))},
    ),
    "a rule that matches nothing": (
        "-A jail -j RETURN",
        "-A jail -s 10.0.0.1 -m iprange --src-range 10.0.0.2-10.0.0.3 -j DROP\n-A jail -j RETURN",
        set(),
    ),
    "a range of addresses": (
        "-A jail -j RETURN",
        "-A jail -m iprange --dst-range 10.0.0.5-10.0.0.9 -j DROP\n-A jail -j RETURN",
        {hull(destination=network(0x0A000000, 28))},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_concerns_what_its_rules_can_match(name: str) -> None:
    before, after, expected = EDITS[name]
    new = TEXT.replace(before, after)
    if "-A new" in after:
        new = new.replace(":jail -\n", ":jail -\n:new -\n")
    assert new != TEXT
    assert set(hulls_between(TEXT, new)) == expected


REFUSED = {
    "a policy": (":INPUT DROP", ":INPUT ACCEPT", "policy of INPUT"),
    "another table": ("--to-ports 80", "--to-ports 81", "table nat"),
    "a rule for all": ("-A jail -j RETURN\n", "", "names no address"),
    "a rule for an interface": ("-A INPUT -i lo -j ACCEPT\n", "", "names no address"),
    "a table gone": ("*filter", "*security", "table security"),
    "what is no rule": ("-s 192.0.2.9/32", "-s 192.0.2.999", "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_hulls_cannot_describe_is_refused(name: str) -> None:
    before, after, why = REFUSED[name]
    with pytest.raises(TooMuchEdited, match=why):
        hulls_between(TEXT, TEXT.replace(before, after))


def test_too_many_edits_are_refused() -> None:
    bans = "".join(f"-A jail -s 10.0.0.{number}/32 -j DROP\n" for number in range(65))
    with pytest.raises(TooMuchEdited, match="65 kinds"):
        hulls_between(TEXT, TEXT.replace("-A jail -j RETURN\n", bans + "-A jail -j RETURN\n"))


def test_a_comment_ends_where_it_ends() -> None:
    """Characters at which Python would begin a new line may stand in comments."""
    odd = '-A jail -p udp -m comment --comment "a\x0b*nat\x0b#b\u2028:c" -j {}\n-A jail -j RETURN\n'
    drop, accept = (TEXT.replace("-A jail -j RETURN\n", odd.format(v)) for v in ("DROP", "ACCEPT"))
    assert hulls_between(plain(drop), plain(accept)) == (hull(protocols=(17, 17)),)
    assert hulls_between(TEXT, plain(drop)) == (hull(protocols=(17, 17)),)


def test_counters_and_comments_are_no_edit() -> None:
    counted = TEXT.replace(":INPUT DROP", "# a comment\n:INPUT DROP [12:345]")
    counted = counted.replace("-A jail -j", "[7:8] -A jail -j")
    assert edit_between(TEXT, plain(counted), Family.IPV4, Backend.NFT) is None


def concerned(hulls: tuple[Hull, ...], packet: Mapping[Field, int]) -> bool:
    def inside(each: Hull) -> bool:
        ranges = (
            (Field.PROTOCOL, each.protocols),
            (Field.SOURCE_PORT, each.source_ports),
            (Field.DESTINATION_PORT, each.destination_ports),
        )
        networks = ((Field.SOURCE, each.source), (Field.DESTINATION, each.destination))
        return all(low <= packet.get(f, 0) <= high for f, (low, high) in ranges) and all(
            packet.get(f, 0) & mask == value for f, (value, mask) in networks
        )

    return any(inside(each) for each in hulls)


def edited(source: random.Random, text: str, extra: str) -> str:
    """A few rules of the filter table taken out, moved, or brought in from another ruleset."""
    head, table, rest = text.partition("*filter\n")
    lines, _, tail = rest.partition("COMMIT\n")
    rules = lines.splitlines()
    first = next((i for i, line in enumerate(rules) if line.startswith("-A")), len(rules))
    chains = {line.split()[0][1:] for line in rules[:first]}
    others = [
        line
        for line in extra.partition("*filter\n")[2].partition("COMMIT\n")[0].splitlines()
        if line.startswith("-A") and "user" not in line
    ]
    for _ in range(source.randint(1, 3)):
        place = source.randint(first, len(rules))
        kind = source.random()
        if kind < 0.4 and place < len(rules):
            del rules[place]
        elif kind < 0.6 and place < len(rules):
            rules.append(rules.pop(place))
        elif others:
            chosen = source.choice(others)
            if chosen.split()[1] in chains:
                rules.insert(place, chosen)
    return head + table + "\n".join([*rules, ""]) + "COMMIT\n" + tail


def path_of(
    ruleset: Ruleset, classified: Classified, packet: Mapping[Field, int], state: int
) -> tuple[list[str], Verdict | None]:
    hook = classified.table, classified.chain
    path = interpret(ruleset, classified.treatments, hook, classified.space, packet, state)
    return [rule_words(ruleset.rule(item.rule)) for item in path.items], path.verdict


def translated(
    packet: Mapping[Field, int], old: Classified, new: Classified
) -> Mapping[Field, int]:
    """The same packet in another chain's numbers for interfaces."""
    changed = dict(packet)
    for name in (Field.IN_INTERFACE, Field.OUT_INTERFACE):
        text = old.space.interfaces[packet.get(name, 0)]
        changed[name] = new.space.interface_class(text.replace("+", "77"))
    return changed


@pytest.mark.parametrize("seed", range(40))
def test_no_other_packet_takes_another_way(seed: int) -> None:
    """Random edits of random rulesets: whatever lies outside goes the same way before and after."""
    source = random.Random(seed)
    family = source.choice(list(Family))
    compared = inside = 0
    while compared + inside < 400:
        text, extra = (random_ruleset(source, family) for _ in range(2))
        try:
            old = read_text(text, family=family, backend=Backend.NFT)
            new = read_text(edited(source, write(old), extra), family=family, backend=Backend.NFT)
            hulls = hulls_between(plain(write(old)), plain(write(new)), family)
        except (TooMuchEdited, BpfilterError):
            continue
        for chain in ("INPUT", "FORWARD", "OUTPUT"):
            before, after = (classify(each, "filter", chain) for each in (old, new))
            for packet in sample_packets(flatten(old, before), np.random.default_rng(seed), 60):
                if concerned(hulls, packet):
                    inside += 1
                    continue
                for state in STATES:
                    first = path_of(old, before, packet, state)
                    second = path_of(new, after, translated(packet, before, after), state)
                    # A chain of dynamic rules is one item: which it is may depend on the edit.
                    if Verdict.PUNT not in (first[1], second[1]) and not any(
                        "user" in words for words in (*first[0], *second[0])
                    ):
                        assert first == second, (packet, state, hulls)
                compared += 1
    assert compared


def test_hulls_are_as_wide_as_the_family() -> None:
    text = TEXT.replace("192.0.2.9/32", "2001:db8::9/128")
    after = text.replace("-A jail -s 2001:db8::9/128 -j DROP\n", "")
    (only,) = hulls_between(text, after, Family.IPV6)
    assert only.source == (0x20010DB8 << 96 | 9, (1 << field_bits(Field.SOURCE, Family.IPV6)) - 1)
