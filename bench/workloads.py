"""The rulesets of the suite: generated from a seed, each with its equals for other filters.

| kind | rules |
|---|---|
| acl, fw, ipc | the styles of `generate.py`; in IPv6 the same structure below 2001:db8::/32 |
| grid | exact source, destination and destination port, TCP and UDP; one rule for every packet |
| blocklist | `-s ADDRESS -j DROP`, uniformly random unicast addresses, policy ACCEPT |
| chains | a chain per /24 of destinations, 20 ports in each, that RETURNs; jumps from INPUT |
| docker | what Docker adds to FORWARD, by hand, for so many published ports, as an INPUT |
| file | a filter table of the user's own |

`nft` and `ipset` are the same decisions as an administrator who knows the tool would write them:
verdict maps over concatenations, sets of addresses. They exist where one set or map says it all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.generate import Style, generate, ruleset_text
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.read import detect_family


class Kind(StrEnum):
    """What the rules look like."""

    ACL = "acl"
    FW = "fw"
    IPC = "ipc"
    GRID = "grid"
    BLOCKLIST = "blocklist"
    CHAINS = "chains"
    DOCKER = "docker"


@dataclass(frozen=True, slots=True)
class Workload:
    """One ruleset. `text`: as iptables-save prints it, with the rules in filter INPUT.

    `nft`: a file for `nft -f`; `ipset`: a file for `ipset restore` and the iptables rules for it.
    """

    name: str
    rules: int
    text: str
    family: Family = Family.IPV4
    nft: str | None = None
    ipset: tuple[str, str] | None = None


def workload(kind: Kind, count: int, seed: int, family: Family = Family.IPV4) -> Workload:
    """The ruleset of a kind with about so many rules; equal arguments give equal rules."""
    made = _MAKERS[kind](count, seed)
    if family is Family.IPV4:
        return made
    return Workload(f"{made.name}6", made.rules, as_ipv6(made.text), family)


def from_file(path: Path) -> Workload:
    """The filter table of a file in iptables-save's format; RulesetRefused comes when it is read.

    Chains other than INPUT stay, but packets meet INPUT alone.
    """
    text = path.read_text()
    family, _ = detect_family(text)
    return Workload(path.name, text.count("\n-A "), text, family)


def as_ipv6(text: str) -> str:
    """The rules with IPv6 addresses of the same structure."""

    def replaced(found: re.Match[str]) -> str:
        *octets, length = map(int, found.groups())
        a, b, c, d = octets
        return f"2001:db8:{a << 8 | b:x}:{c << 8 | d:x}::/{128 if length == 32 else 32 + length}"

    text = re.sub(r"\b(\d+)\.(\d+)\.(\d+)\.(\d+)/(\d+)", replaced, text)
    return text.replace("-p icmp", "-p ipv6-icmp")


def _styled(style: Style) -> Callable[[int, int], Workload]:
    return lambda count, seed: Workload(style.value, count, generate(style, count, seed))


def _dotted(address: int) -> str:
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


def _addresses(rng: random.Random, count: int) -> list[str]:
    found: dict[int, None] = {}
    while len(found) < count:
        address = rng.randrange(1 << 24, 224 << 24)
        if address >> 24 != 127:
            found[address] = None
    return [_dotted(address) for address in found]


def _blocklist(count: int, seed: int) -> Workload:
    addresses = _addresses(random.Random(seed), count)
    text = ruleset_text([f"-s {a}/32 -j DROP" for a in addresses], policy="ACCEPT")
    nft = _nft(
        [f"set s {{ type ipv4_addr; elements = {{ {', '.join(addresses)} }}; }}"],
        ["ip saddr @s drop"],
        "accept",
    )
    lines = [f"create bench hash:ip maxelem {len(addresses)}"]
    members = "\n".join([*lines, *(f"add bench {a}" for a in addresses), ""])
    rules = ruleset_text(["-m set --match-set bench src -j DROP"], policy="ACCEPT")
    return Workload("blocklist", count, text, nft=nft, ipset=(members, rules))


def _grid(count: int, seed: int) -> Workload:
    rng = random.Random(seed)
    sources = _addresses(rng, count)
    rules, elements, members = [], [], []
    for number, source in enumerate(sources):
        destination = f"10.0.{number >> 8 & 255}.{number & 255}"
        protocol = ("tcp", "udp")[number & 1]
        port = 1 + number % 60000
        verdict = ("DROP", "ACCEPT")[number % 3 == 0]
        rules.append(
            f"-s {source}/32 -d {destination}/32 -p {protocol} -m {protocol} "
            f"--dport {port} -j {verdict}"
        )
        elements.append(f"{source} . {destination} . {protocol} . {port} : {verdict.lower()}")
        if verdict == "ACCEPT":
            members.append(f"add bench {source},{protocol}:{port},{destination}")
    key = "ipv4_addr . ipv4_addr . inet_proto . inet_service"
    nft = _nft(
        [f"map m {{ type {key} : verdict; elements = {{ {', '.join(elements)} }}; }}"],
        ["ip saddr . ip daddr . meta l4proto . th dport vmap @m"],
        "drop",
    )
    head = f"create bench hash:ip,port,ip maxelem {count}"
    ipset = "\n".join([head, *members, ""])
    accept = ruleset_text(["-m set --match-set bench src,dst,dst -j ACCEPT"])
    return Workload("grid", count, ruleset_text(rules), nft=nft, ipset=(ipset, accept))


def _nft(sets: list[str], rules: list[str], policy: str) -> str:
    hook = f"type filter hook input priority filter; policy {policy};"
    return "\n".join(["table ip bench {", *sets, "chain input {", hook, *rules, "}", "}", ""])


def _chains(count: int, seed: int) -> Workload:
    rng = random.Random(seed)
    heads, jumps, bodies = [], [], []
    for number in range(max(1, count // 21)):
        name = f"NET{number}"
        heads.append(f":{name} - [0:0]")
        jumps.append(f"-A INPUT -d 10.{number >> 8 & 255}.{number & 255}.0/24 -j {name}")
        for port in sorted(rng.sample(range(1, 65536), 19)):
            protocol = rng.choice(("tcp", "udp"))
            verdict = rng.choices(("ACCEPT", "DROP", "RETURN"), (4, 3, 1))[0]
            bodies.append(f"-A {name} -p {protocol} -m {protocol} --dport {port} -j {verdict}")
        bodies.append(f"-A {name} -s 10.0.0.0/8 -j ACCEPT")
    return Workload("chains", len(jumps) + len(bodies), _table(heads, [*jumps, *bodies]))


def _docker(count: int, seed: int) -> Workload:
    rng = random.Random(seed)
    names = ("DOCKER", "DOCKER-ISOLATION-1", "DOCKER-ISOLATION-2", "DOCKER-USER")
    rules = [
        "-A INPUT -j DOCKER-USER",
        "-A INPUT -j DOCKER-ISOLATION-1",
        "-A INPUT -d 172.16.0.0/12 -j DOCKER",
        "-A INPUT -s 172.16.0.0/12 -j ACCEPT",
        "-A DOCKER-ISOLATION-1 -s 172.16.0.0/12 -d 172.16.0.0/12 -j DOCKER-ISOLATION-2",
        "-A DOCKER-ISOLATION-1 -j RETURN",
        "-A DOCKER-ISOLATION-2 -d 172.31.0.0/16 -j DROP",
        "-A DOCKER-ISOLATION-2 -j RETURN",
        "-A DOCKER-USER -s 203.0.113.0/24 -j DROP",
        "-A DOCKER-USER -j RETURN",
    ]
    for number in range(max(1, count - len(rules))):
        address = f"172.{17 + number % 8}.{number >> 8 & 255}.{number & 255}"
        port = rng.choice((80, 443, 5432, 6379, 8080, 9000))
        rules.append(f"-A DOCKER -d {address}/32 -p tcp -m tcp --dport {port} -j ACCEPT")
    return Workload("docker", len(rules), _table([f":{name} - [0:0]" for name in names], rules))


def _table(chains: list[str], rules: list[str]) -> str:
    built_in = (":INPUT DROP [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]")
    head = "# Generated by iptables-save"
    return "\n".join([head, "*filter", *built_in, *chains, *rules, "COMMIT", ""])


_MAKERS: dict[Kind, Callable[[int, int], Workload]] = {
    Kind.ACL: _styled(Style.ACL),
    Kind.FW: _styled(Style.FW),
    Kind.IPC: _styled(Style.IPC),
    Kind.GRID: _grid,
    Kind.BLOCKLIST: _blocklist,
    Kind.CHAINS: _chains,
    Kind.DOCKER: _docker,
}
