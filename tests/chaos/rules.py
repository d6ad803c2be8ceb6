"""The firewall's rules, and what they say of each kind of packet.

Ports 1000-1999 are accepted (1800-1899 by rules that only iptables can execute), 2000-2999 are
dropped, and what happens to 3000-3003 changes all the time. OUTPUT has a rule of its own for
2700-2799.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.chaos.book import Kind, Verdict

CHANGING = (3000, 3001, 3002, 3003)
BARRED = range(2700, 2800)
FIXED: Mapping[str, Verdict] = {
    "udp accepted": True,
    "udp with options accepted": True,
    "udp by a dynamic rule accepted": True,
    "udp in fragments accepted": True,
    "tcp accepted": True,
    "echo request accepted": True,
    "udp dropped": False,
    "udp with options dropped": False,
    "udp in fragments dropped": False,
    "udp rejected": False,
    "tcp dropped": False,
    "tcp with a bad checksum dropped": False,
    "tcp with impossible flags dropped": False,
    "icmp of another type dropped": False,
}
Port = int
Rule = tuple[Port, Verdict]


_INSIDE = {"INPUT": "-i lo", "FORWARD": "-i v3", "OUTPUT": "-o lo"}


def barring() -> str:
    """The rule that OUTPUT has alone, as iptables-save writes it."""
    return f"-p udp -m udp --dport {BARRED.start}:{BARRED.stop - 1} -j DROP"


def name_of(port: Port) -> str:
    return f"udp to {port}"


def _rule(rule: Rule) -> str:
    return f"-p udp -m udp --dport {rule[0]} -j {'ACCEPT' if rule[1] else 'DROP'}"


@dataclass
class Rules:
    """One family's rules. `top` and `tail` surround the rules of each chain, `foreign` is a chain
    of another tool's that both run through, and `filler` are rules that our traffic never meets.

    `flushed`: all rules are gone, `wiped`: the tables too.
    """

    family: int
    chains: tuple[str, ...]
    filler: int = 0
    top: dict[str, list[Rule]] = field(default_factory=dict)
    tail: dict[str, list[Rule]] = field(default_factory=dict)
    foreign: list[Rule] = field(default_factory=list)
    flushed: bool = False
    wiped: bool = False

    def __post_init__(self) -> None:
        self.top = {chain: [] for chain in self.chains}
        self.tail = {chain: [] for chain in self.chains}
        self.foreign = [(port, port % 2 == 0) for port in CHANGING]

    def verdicts(self) -> dict[Kind, Verdict]:
        """What each kind of packet deserves under these rules."""
        return {
            Kind(chain, self.family, name): self._verdict(verdict)
            for chain in self.chains
            for name, verdict in (*FIXED.items(), *self._changing(chain))
        }

    def _changing(self, chain: str) -> Iterator[tuple[str, Verdict]]:
        for port in CHANGING:
            rules = (*self.top[chain], *self.foreign, *self.tail[chain])
            yield name_of(port), next((verdict for at, verdict in rules if at == port), False)

    def _verdict(self, verdict: Verdict) -> Verdict:
        return self.wiped or (verdict and not self.flushed)

    def text(self) -> str:
        """All of it for iptables-restore."""
        lines = ["*filter", ":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT DROP [0:0]",
                 ":SERVICES - [0:0]", ":f2b-chaos - [0:0]"]  # fmt: skip
        for chain in self.chains:
            lines += [f"-A {chain} {_rule(rule)}" for rule in self.top[chain]]
            lines += [
                f"-A {chain} {_INSIDE[chain]} -j ACCEPT",
                f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                f"-A {chain} -m conntrack --ctstate INVALID -j DROP",
                *([f"-A OUTPUT {barring()}"] if chain == "OUTPUT" else []),
                f"-A {chain} -j SERVICES",
                *(f"-A {chain} {_rule(rule)}" for rule in self.tail[chain]),
            ]
        lines += [f"-A SERVICES {rule}" for rule in (*self._filler(), *self._services())]
        lines += [f"-A f2b-chaos {_rule(rule)}" for rule in self.foreign]
        return "\n".join([*lines, "COMMIT", ""])

    def _services(self) -> Iterator[str]:
        yield "-p udp -m udp --dport 1800:1899 -m recent --set --name chaos -j ACCEPT"
        for protocol in ("udp", "tcp"):
            yield f"-p {protocol} -m {protocol} --dport 1000:1999 -j ACCEPT"
        six = self.family == 6
        answer = f"icmp{'6' if six else ''}-port-unreachable"
        yield f"-p udp -m udp --dport 2800:2899 -j REJECT --reject-with {answer}"
        yield "-p udp -m udp --dport 2000:2799 -j DROP"
        yield "-j f2b-chaos"
        for kind in ("128", "133", "134", "135", "136") if six else ("8",):
            family = ("ipv6-icmp", "icmp6", "icmpv6") if six else ("icmp", "icmp", "icmp")
            yield f"-p {family[0]} -m {family[1]} --{family[2]}-type {kind} -j ACCEPT"

    def _filler(self) -> Iterator[str]:
        rng = random.Random(7)
        for _ in range(self.filler):
            source = f"2001:db8:{rng.randrange(1 << 16):x}::/48" if self.family == 6 else (
                f"192.0.{rng.randrange(256)}.{rng.randrange(256)}/32"
            )  # fmt: skip
            port = rng.randrange(1, 65536)
            yield f"-s {source} -p tcp -m tcp --dport {port} -j {rng.choice(['ACCEPT', 'DROP'])}"

    def edit(self, rng: random.Random) -> list[str]:
        """Change one rule at random; the words for iptables that do the same."""
        edits = {"add": self._add, "insert": self._insert, "replace": self._replace,
                 "delete": self._delete, "inside": self._inside}  # fmt: skip
        words: list[str] = []
        while not words:
            words = rng.choice(list(edits.values()))(rng)
        return words

    def _new(self, rng: random.Random) -> Rule:
        return rng.choice(CHANGING), rng.random() < 0.5

    def _add(self, rng: random.Random) -> list[str]:
        chain, rule = rng.choice(self.chains), self._new(rng)
        if len(self.tail[chain]) > 3:
            return []
        self.tail[chain].append(rule)
        return ["-A", chain, *_rule(rule).split()]

    def _insert(self, rng: random.Random) -> list[str]:
        """At position 1, so above whatever stood there."""
        chain, rule = rng.choice(self.chains), self._new(rng)
        if len(self.top[chain]) > 2:
            return []
        self.top[chain].insert(0, rule)
        return ["-I", chain, "1", *_rule(rule).split()]

    def _inside(self, rng: random.Random) -> list[str]:
        rule = self._new(rng)
        if len(self.foreign) > 6:
            return []
        self.foreign.insert(0, rule)
        return ["-I", "f2b-chaos", *_rule(rule).split()]

    def _replace(self, rng: random.Random) -> list[str]:
        if not self.foreign:
            return []
        at, rule = rng.randrange(len(self.foreign)), self._new(rng)
        self.foreign[at] = rule
        return ["-R", "f2b-chaos", str(at + 1), *_rule(rule).split()]

    def _delete(self, rng: random.Random) -> list[str]:
        """By content, which takes the first rule that is equal."""
        places = {**{("top", c): r for c, r in self.top.items()},
                  **{("tail", c): r for c, r in self.tail.items()},
                  ("foreign", "f2b-chaos"): self.foreign}  # fmt: skip
        filled = [(place, chain) for (place, chain), rules in places.items() if rules]
        if not filled:
            return []
        place, chain = rng.choice(filled)
        rule = rng.choice(places[place, chain])
        first = ("top", "tail") if chain in self.chains else ("foreign",)
        holder = next(places[p, chain] for p in first if rule in places[p, chain])
        holder.remove(rule)
        return ["-D", chain, *_rule(rule).split()]
