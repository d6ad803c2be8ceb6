"""What the early profile drops, held against the rules' own meaning, one chain after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bpfilter.analysis.interpret import interpret
from bpfilter.compiler.classify import classify
from bpfilter.compiler.early import Depth, EarlyChain, compile_early, unconfirmed_states
from bpfilter.compiler.ir import OpKind, Verdict
from bpfilter.compiler.layout import AXES
from bpfilter.compiler.walk import function_of, walk
from bpfilter.ruleset.fields import Field, State
from bpfilter.ruleset.model import Ruleset
from bpfilter.ruleset.read import read_text

PATH = [("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")]
MATCHES = (
    "", "-s 10.0.0.0/8", "-s 10.1.0.0/16", "! -d 10.2.0.0/16", "-p tcp --dport 80", "-p udp",
    "-p tcp --syn", "-p tcp --tcp-flags FIN,PSH FIN", "-m length --length 100:200", "-p tcp",
    "-m ttl --ttl-lt 10", "-p tcp --sport 80",
)  # fmt: skip
STATES = ("", "", "", "-m state --state NEW", "-m state --state INVALID",
          "-m conntrack --ctstate RELATED,ESTABLISHED", "-m conntrack --ctstate UNTRACKED",
          "-m conntrack --ctstate RELATED")  # fmt: skip
TARGETS = {
    "raw": ("-j DROP", "-j ACCEPT", "-j RETURN", "", "-j NOTRACK", "-m limit --limit 1/s -j LOG"),
    "mangle": ("-j DROP", "-j ACCEPT", "-j RETURN", "", "-j MARK --set-mark 1",
               "-j TTL --ttl-set 3"),
    "filter": ("-j DROP", "-j DROP", "-j ACCEPT", "-j RETURN", "-j LOG", "-j REJECT",
               "-m recent --name r --set", "-m mark --mark 1 -j DROP"),
}  # fmt: skip


def text(rng: random.Random) -> str:
    """Rules in every table that a packet passes on its way to INPUT."""
    lines = []
    for table, chains in (
        ("raw", ("PREROUTING",)),
        ("mangle", ("PREROUTING", "INPUT")),
        ("filter", ("INPUT",)),
    ):
        if table != "filter" and rng.random() < 0.3:
            continue
        lines += [f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains)]
        if table == "filter":
            lines[-1] = ":INPUT DROP [0:0]"
        lines.append(":USER - [0:0]")
        for chain in (*chains, "USER"):
            for _ in range(rng.randrange(4)):
                targets = TARGETS[table] if chain == "USER" else (*TARGETS[table], "-j USER")
                state = "" if table == "raw" else rng.choice(STATES)
                rule = ("-A", chain, rng.choice(MATCHES), state, rng.choice(targets))
                lines.append(" ".join(word for word in rule if word))
        lines.append("COMMIT")
    if rng.random() < 0.5:
        nat = ("*nat", ":PREROUTING ACCEPT [0:0]", "-A PREROUTING -p tcp --dport 80 -j REDIRECT")
        lines = [*nat, "COMMIT", *lines]
    return "\n".join(lines) + "\n"


def packet(rng: random.Random) -> dict[Field, int]:
    fields = dict.fromkeys((*AXES, Field.FRAGMENT), 0)
    fields[Field.SOURCE] = rng.choice((0x0A010001, 0x0A020001, 0xC0A80001))
    fields[Field.DESTINATION] = rng.choice((0x0A020002, 0xC0A80002))
    fields[Field.PROTOCOL] = protocol = rng.choice((6, 6, 17, 1))
    fields[Field.LENGTH] = rng.choice((60, 150, 1500))
    fields[Field.TTL] = rng.choice((5, 64))
    if protocol != 1:
        fields[Field.SOURCE_PORT], fields[Field.DESTINATION_PORT] = rng.choice(((80, 9), (9, 80)))
    if protocol == 6:
        fields[Field.TCP_FLAGS] = rng.choice((2, 16, 17, 24, 25, 18, 4, 41))
    return fields


def dropped(early: EarlyChain, fields: dict[Field, int]) -> bool:
    return function_of(early.plan.flat, fields) == early.plan.functions[0]


def traceless(ruleset: Ruleset, fields: dict[Field, int], state: int) -> bool:
    """Whether the rules drop this packet in a state, after nothing that only iptables executes."""
    for hook in PATH:
        if hook[0] not in ruleset.tables:
            continue
        classified = classify(ruleset, *hook)
        here = int(State.INVALID) if hook[0] == "raw" else state
        found = interpret(ruleset, classified.treatments, hook, classified.space, fields, here)
        if any(ruleset.rule(item.rule).target.name != "NOTRACK" for item in found.items):
            return False
        if found.verdict is not Verdict.ACCEPT:
            return found.verdict is Verdict.DROP
    return False


def behind_gro(fields: dict[Field, int]) -> Iterator[dict[Field, int]]:
    """What netfilter may see of a packet that a driver showed so."""
    flags = fields[Field.TCP_FLAGS]
    merged = fields[Field.PROTOCOL] == 6 and not flags & 0b100110
    for more in (0, 1, 8, 9) if merged else (0,):
        for length in {fields[Field.LENGTH], 150, 9000} if fields[Field.PROTOCOL] != 1 else (60,):
            yield fields | {Field.TCP_FLAGS: flags | more, Field.LENGTH: length}


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("seed", range(60))
def test_only_what_is_dropped_without_a_trace_in_every_state_is_dropped_early(
    depth: Depth, seed: int
) -> None:
    rng = random.Random(seed)
    rules = text(rng)
    ruleset = read_text(rules)
    states = unconfirmed_states(ruleset, expectations=seed % 2 == 0)
    early = compile_early(ruleset, "INPUT", depth, states=states)
    for _ in range(40):
        fields = packet(rng)
        if not dropped(early, fields):
            continue
        for seen in behind_gro(fields) if depth is Depth.XDP else (fields,):
            for bit in (1, 2, 4, 8, 16):
                assert not states & bit or traceless(ruleset, seen, bit), (rules, fields, bit)


def test_most_of_a_simple_firewall_is_dropped_early_in_one_walk() -> None:
    ruleset = read_text("""*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp --syn -m state --state NEW --dport 22 -j ACCEPT
COMMIT
""")
    for expectations in (False, True):
        states = unconfirmed_states(ruleset, expectations=expectations)
        early = compile_early(ruleset, "INPUT", Depth.XDP, states=states)
        syn = dict.fromkeys((*AXES, Field.FRAGMENT), 0) | {Field.PROTOCOL: 6, Field.TCP_FLAGS: 2}
        assert early.plan.flat.state_classes() == (31,)
        assert dropped(early, syn | {Field.DESTINATION_PORT: 23}) is not expectations
        assert not dropped(early, syn | {Field.DESTINATION_PORT: 22})


def test_a_walk_that_ends_in_raw_is_known_to_end_there() -> None:
    ruleset = read_text("""*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 10.0.0.0/8 -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
COMMIT
""")
    early = compile_early(ruleset, "INPUT", Depth.TC, states=9)
    fields = dict.fromkeys((*AXES, Field.FRAGMENT), 0)
    _, inside = walk(early.plan.flat, fields | {Field.SOURCE: 0x0A000001}, 1)
    _, outside = walk(early.plan.flat, fields, 1)
    assert inside < early.raw_entries <= outside


def test_what_is_not_for_this_host_is_left_to_the_end_of_raw() -> None:
    ruleset = read_text("""*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 10.0.0.0/8 -j DROP
COMMIT
*filter
:FORWARD DROP [0:0]
COMMIT
""")
    early = compile_early(ruleset, "FORWARD", Depth.TC, states=9, whole=False)
    assert [entry.kind for entry in early.plan.flat.entries] == [OpKind.DROP, OpKind.PUNT]


def test_the_ttl_of_forward_is_the_one_behind_forwarding() -> None:
    ruleset = read_text("""*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m ttl --ttl-eq 7 -j DROP
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m ttl --ttl-eq 5 -j ACCEPT
COMMIT
""")
    early = compile_early(ruleset, "FORWARD", Depth.TC, states=9)
    boxes = [entry.box.get(Field.TTL) for entry in early.plan.flat.entries]
    assert [values.ranges if values else None for values in boxes] == [((7, 7),), ((6, 6),), None]
