"""Seeded five-field rulesets with the structure that ClassBench found in real filter sets.

Source: D. E. Taylor and J. S. Turner, "ClassBench: A Packet Classification Benchmark", IEEE/ACM
ToN 15(3), 2007. Not its seed files, but its three styles and their traits, with these shares:

| style | source         | destination    | source port              | destination port          |
|-------|----------------|----------------|--------------------------|---------------------------|
| acl   | any 30, /32 25 | any 2, /32 45  | any 98, exact 2          | any 25, exact 60, range 15|
| fw    | any 50, /32 20 | any 40, /32 30 | any 60, high 25, exact 15| any 35, exact 35, range 30|
| ipc   | any 20, /32 35 | any 20, /32 35 | any 75, exact 15, high 10| any 50, exact 35, range 15|

What is left of the addresses are prefixes /8 … /31, mostly /16 and /24. Addresses share prefixes: a
site (/16) is drawn again with a probability that keeps about sqrt(n) sites, a subnet (/24) within
it likewise. Exact ports are well known ones in seven of ten cases. 60 % of the rules are TCP, 25 %
UDP, 5 % ICMP, the rest any protocol; only TCP and UDP rules have ports. Two of three rules ACCEPT,
the policy is DROP. No rule appears twice, and as administrators write them the specific rules stand
before the general ones: in order of the address bits left open, in bands of 16.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Style(StrEnum):
    """What the rules look like: access lists, firewalls, or Linux IP chains."""

    ACL = "acl"
    FW = "fw"
    IPC = "ipc"


@dataclass(frozen=True, slots=True)
class Shares:
    """Weights of one style; addresses as (any, host, prefix), ports as (any, exact, range)."""

    source: tuple[int, int, int]
    destination: tuple[int, int, int]
    source_port: tuple[int, int, int]
    destination_port: tuple[int, int, int]


_SHARES = {
    Style.ACL: Shares((30, 25, 45), (2, 45, 53), (98, 2, 0), (25, 60, 15)),
    Style.FW: Shares((50, 20, 30), (40, 30, 30), (60, 15, 25), (35, 35, 30)),
    Style.IPC: Shares((20, 35, 45), (20, 35, 45), (75, 15, 10), (50, 35, 15)),
}
_WELL_KNOWN = (
    *(20, 21, 22, 23, 25, 53, 80, 88, 110, 111, 123, 135, 137, 138, 139, 143, 161, 162, 389),
    *(443, 445, 465, 514, 587, 636, 993, 995, 1433, 1521, 2049, 3128, 3306, 3389, 5060, 5432),
    *(5900, 6379, 8000, 8080, 8443, 9090, 9100, 9200, 11211, 27017),
)
_PREFIXES = (8, 12, 16, 16, 18, 20, 22, 23, 24, 24, 24, 24, 25, 26, 27, 28, 29, 30, 31)


class _Addresses:
    """Addresses that share sites and subnets."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self._rng = rng
        self._fresh = max(0.02, count**-0.5)
        self._sites: list[int] = []
        self._subnets: dict[int, list[int]] = {}

    def draw(self, shares: tuple[int, int, int]) -> str | None:
        """An address or prefix as iptables-save writes it; None for any."""
        kind = self._rng.choices(("any", "host", "prefix"), shares)[0]
        if kind == "any":
            return None
        length = 32 if kind == "host" else self._rng.choice(_PREFIXES)
        address = self._host() >> (32 - length) << (32 - length)
        dotted = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))
        return f"{dotted}/{length}"

    def _host(self) -> int:
        site = self._again(self._sites, self._unicast_site, self._fresh)
        subnets = self._subnets.setdefault(site, [])
        subnet = self._again(subnets, lambda: self._rng.randrange(256), 3 * self._fresh)
        return site << 16 | subnet << 8 | self._rng.randrange(1, 255)

    def _unicast_site(self) -> int:
        first = self._rng.choice([octet for octet in range(1, 224) if octet != 127])
        return first << 8 | self._rng.randrange(256)

    def _again(self, known: list[int], fresh: Callable[[], int], share: float) -> int:
        if not known or self._rng.random() < share:
            known.append(fresh())
            return known[-1]
        return self._rng.choice(known)


def generate(style: Style, count: int, seed: int) -> str:
    """A ruleset with `count` rules in filter INPUT, as iptables-save prints it."""
    return ruleset_text(rules(style, count, seed))


def rules(style: Style, count: int, seed: int) -> list[str]:
    """The words of `count` distinct rules, in order."""
    rng = random.Random(f"{style}-{count}-{seed}")
    shares = _SHARES[style]
    sources, destinations = _Addresses(rng, count), _Addresses(rng, count)
    found: dict[str, None] = {}
    while len(found) < count:
        matches = _matches(rng, shares, sources, destinations)
        if matches:
            found.setdefault(matches)
    ordered = sorted(found, key=lambda matches: _open_bits(matches) // 16)
    return [f"{matches} -j {rng.choices(('ACCEPT', 'DROP'), (2, 1))[0]}" for matches in ordered]


def ruleset_text(lines: Sequence[str], chain: str = "INPUT", policy: str = "DROP") -> str:
    """Rules of one filter chain with its policy, as iptables-save prints them."""
    heads = [f":{name} {policy if name == chain else 'ACCEPT'} [0:0]" for name in _BUILT_IN]
    body = [f"-A {chain} {line}" for line in lines]
    return "\n".join(["# Generated by iptables-save", "*filter", *heads, *body, "COMMIT", ""])


_BUILT_IN = ("INPUT", "FORWARD", "OUTPUT")


def _matches(
    rng: random.Random, shares: Shares, sources: _Addresses, destinations: _Addresses
) -> str:
    words = []
    if source := sources.draw(shares.source):
        words.append(f"-s {source}")
    if destination := destinations.draw(shares.destination):
        words.append(f"-d {destination}")
    protocol = rng.choices(("tcp", "udp", "icmp", None), (60, 25, 5, 10))[0]
    if protocol:
        words.append(f"-p {protocol}")
    if protocol in ("tcp", "udp"):
        ports = []
        if source_port := _port(rng, shares.source_port):
            ports.append(f"--sport {source_port}")
        if destination_port := _port(rng, shares.destination_port):
            ports.append(f"--dport {destination_port}")
        if ports:
            words += [f"-m {protocol}", *ports]
    return " ".join(words)


def _open_bits(matches: str) -> int:
    words = matches.split()
    lengths = [int(word.rpartition("/")[2]) for word in words if word.count(".") == 3]
    return 64 - sum(lengths)


def _port(rng: random.Random, shares: tuple[int, int, int]) -> str | None:
    kind = rng.choices(("any", "exact", "range"), shares)[0]
    if kind == "any":
        return None
    if kind == "exact":
        return str(rng.choice(_WELL_KNOWN) if rng.random() < 0.7 else rng.randrange(1, 65536))
    if rng.random() < 0.5:
        return "1024:65535"
    low = rng.randrange(1, 65000)
    return f"{low}:{min(65535, low + rng.choice((1, 9, 99, 499)))}"
