"""Random rulesets for the property tests: every static match, and dynamic rules between them.

What is drawn depends on the random source alone, so a seed names a ruleset. Values come from small
pools, so that rules overlap. A few rulesets are refused by iptables itself; the caller skips them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bpfilter.ruleset.fields import Family

_INTERFACES = ("eth0", "eth1", "eth+", "lo", "wg0", "br-12")
_PORTS = (22, 53, 80, 443, 1024, 8080, 0, 65535)
_V4 = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "0.0.0.0/0", "10.0.0.5/255.0.0.255",
       "198.51.100.128/25", "224.0.0.0/4")  # fmt: skip
_V6 = ("2001:db8::/32", "2001:db8:1::/48", "2001:db8::7", "fd00::/8", "::/0", "fe80::/10",
       "2001:db8::/ffff:0::ffff", "ff00::/8")  # fmt: skip
_RANGES = {
    Family.IPV4: ("10.0.0.5-10.0.1.9", "192.0.2.1-192.0.2.1", "9.255.255.255-10.0.0.0"),
    Family.IPV6: ("2001:db8::5-2001:db8::1:9", "fd00::-fd00::ff"),
}
_STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_ICMP = {
    Family.IPV4: ("echo-request", "echo-reply", "3", "3/1", "time-exceeded", "any", "13"),
    Family.IPV6: ("echo-request", "echo-reply", "1", "1/3", "packet-too-big", "135", "136"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Bounds on a ruleset's size."""

    rules: int = 9
    chains: int = 3
    chain_rules: int = 4


def random_ruleset(source: random.Random, family: Family, shape: Shape | None = None) -> str:
    """iptables-save text of a random ruleset."""
    return _Generator(source, family, shape or Shape()).ruleset()


class _Generator:
    def __init__(self, source: random.Random, family: Family, shape: Shape) -> None:
        self.random = source
        self.family = family
        self.shape = shape
        self.four = family is Family.IPV4

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one(self, choices: Sequence[str]) -> str:
        return self.random.choice(choices)

    def some(self, choices: Sequence[str], most: int) -> list[str]:
        count = self.random.randint(1, min(most, len(choices)))
        chosen = self.random.sample(range(len(choices)), count)
        return [choices[index] for index in sorted(chosen)]

    def ruleset(self) -> str:
        users = [f"user{n}" for n in range(self.random.randint(0, self.shape.chains))]
        lines: list[str] = []
        if self.chance(0.15):
            lines += self.other_table("raw", "PREROUTING", ("-j CT --notrack", "-j DROP"))
        if self.chance(0.15):
            lines += self.other_table(
                "mangle", "PREROUTING", ("-j MARK --set-xmark 0x1/0xff", "-j ACCEPT")
            )
        if self.chance(0.1):
            change = "ttl-set" if self.four else "hl-set"
            target = f"-j {'TTL' if self.four else 'HL'} --{change} 33"
            lines += self.other_table("mangle", "INPUT", (target, "-j TOS --set-tos 0x10/0x3f"))
        if self.chance(0.2):
            lines += self.nat()
        lines.append("*filter")
        for chain in ("INPUT", "FORWARD"):
            lines.append(f":{chain} {self.one(('ACCEPT', 'DROP'))} [0:0]")
        lines.append(":OUTPUT ACCEPT [0:0]")
        lines += [f":{name} - [0:0]" for name in users]
        for chain in ("INPUT", "FORWARD"):
            for _ in range(self.random.randint(1, self.shape.rules)):
                lines.append(self.rule(chain, users))
        for index, name in enumerate(users):
            for _ in range(self.random.randint(0, self.shape.chain_rules)):
                lines.append(self.rule(name, users[index + 1 :]))
        return "\n".join([*lines, "COMMIT", ""])

    def nat(self) -> list[str]:
        """Translations before the filter table, and rules that keep packets from them."""
        inside = "10.1.2.3" if self.four else "2001:db8::7"
        targets = [f"-j DNAT --to-destination {inside}", "-j ACCEPT", "-j RETURN", "-j REDIRECT"]
        rules = [
            f"-A PREROUTING {self.header('PREROUTING')} {self.one(targets)}"
            for _ in range(self.random.randint(1, 3))
        ]
        if self.chance(0.3):
            rules.append("-A POSTROUTING -o eth0 -j MASQUERADE")
        chains = [":PREROUTING ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]"]
        return ["*nat", *chains, *rules, "COMMIT"]

    def other_table(self, table: str, chain: str, targets: Sequence[str]) -> list[str]:
        rules = [
            f"-A {chain} {self.header(chain)} {self.one(targets)}"
            for _ in range(self.random.randint(1, 2))
        ]
        return [f"*{table}", f":{chain} ACCEPT [0:0]", *rules, "COMMIT"]

    def rule(self, chain: str, users: Sequence[str]) -> str:
        header = self.header(chain)
        names = _names(self.four).items() if "! -p" not in header else ()
        protocol = next((word for word, name in names if f"-p {name} " in header), "")
        choices = self.matches(chain, protocol)
        count = self.random.choice((0, 0, 1, 1, 1, 2, 3))
        matches = [self.random.choice(choices)() for _ in range(count)]
        return " ".join(
            word for word in ("-A", chain, header, *matches, self.target(protocol, users)) if word
        )

    def header(self, chain: str) -> str:
        words = []
        for option, probability in (("-s", 0.35), ("-d", 0.3)):
            if self.chance(probability):
                address = self.one(_V4 if self.four else _V6)
                # iptables-nft refuses the negation of every address.
                words += [self.no() if not address.endswith("/0") else "", option, address]
        if chain != "OUTPUT" and self.chance(0.25):
            words += [self.no(), "-i", self.one(_INTERFACES)]
        if chain == "FORWARD" and self.chance(0.3):
            words += [self.no(), "-o", self.one(_INTERFACES)]
        if self.chance(0.65):
            name = self.one(tuple(_names(self.four).values()))
            words += ["!" if self.chance(0.05) else "", "-p", name]
        return " ".join(word for word in words if word) + " "

    def no(self, probability: float = 0.2) -> str:
        return "!" if self.chance(probability) else ""

    def matches(self, chain: str, protocol: str) -> list[Callable[[], str]]:
        found = [
            self.state, self.state, self.conntrack, self.length, self.ttl, self.dscp, self.tos,
            self.mac, self.packet_type, self.range, self.mark, self.comment, self.limit,
            self.recent, self.statistic, self.hashlimit, self.string,
        ]  # fmt: skip
        if self.four:
            found += [self.address_type, self.address_type]
        if protocol in ("tcp", "udp", "sctp", "dccp", "udplite"):
            found += [self.multiport] * 3
        if protocol in ("tcp", "udp", "sctp", "dccp"):
            found += [lambda: self.ports(protocol)] * 6
        if protocol == "tcp":
            found += [self.tcp_flags] * 3
            found += [self.ecn]
        if protocol == "icmp":
            found += [self.icmp] * 6
        if chain in ("INPUT", "FORWARD"):
            found += [self.physical]
        return found

    def port(self) -> int:
        return self.random.choice(_PORTS)

    def port_range(self) -> str:
        if self.chance(0.6):
            return str(self.port())
        low, high = sorted((self.port(), self.port()))
        return self.one((f"{low}:{high}", f"{low}:", f":{high}"))

    def ports(self, protocol: str) -> str:
        words = [
            f"{self.no()} --{kind} {self.port_range()}" for kind in self.some(("sport", "dport"), 2)
        ]
        return f"-m {protocol} " + " ".join(words)

    def multiport(self) -> str:
        kind = self.one(("sports", "dports", "ports"))
        ports = ["22", "53", "80", "443", "8000:8100", "1024:2047"]
        return f"-m multiport {self.no()} --{kind} {','.join(self.some(ports, 4))}"

    def tcp_flags(self) -> str:
        if self.chance(0.3):
            return f"-m tcp {self.no()} --syn"
        mask = self.some(_FLAGS, 6)
        held = self.some(mask, len(mask)) if self.chance(0.8) else ["NONE"]
        return f"-m tcp {self.no()} --tcp-flags {','.join(mask)} {','.join(held)}"

    def icmp(self) -> str:
        name = "icmp" if self.four else "icmp6"
        option = "icmp-type" if self.four else "icmpv6-type"
        return f"-m {name} {self.no()} --{option} {self.one(_ICMP[self.family])}"

    def state(self) -> str:
        return f"-m state {self.no(0.1)} --state {','.join(self.some(_STATES, 3))}"

    def conntrack(self) -> str:
        if self.chance(0.2):
            return f"-m conntrack --ctdir {self.one(('ORIGINAL', 'REPLY'))}"
        return f"-m conntrack {self.no(0.2)} --ctstate {','.join(self.some(_STATES, 3))}"

    def length(self) -> str:
        return f"-m length {self.no()} --length {self.one(('0:100', '100', '60:1400', '1000:'))}"

    def ttl(self) -> str:
        if self.four:
            return (
                f"-m ttl --ttl-{self.one(('eq', 'lt', 'gt'))} {self.one(('1', '64', '63', '128'))}"
            )
        return f"-m hl --hl-{self.one(('eq', 'lt', 'gt'))} {self.one(('2', '64', '255'))}"

    def dscp(self) -> str:
        return f"-m dscp {self.no()} --dscp {self.one(('0x00', '0x0a', '0x2e'))}"

    def tos(self) -> str:
        return f"-m tos {self.no()} --tos {self.one(('0x10/0x3f', '0x08', '0x00/0xff'))}"

    def ecn(self) -> str:
        return f"-m ecn {self.no()} --ecn-ip-ect {self.one(('0', '1', '3'))}"

    def mac(self) -> str:
        address = self.one(("02:00:00:00:00:01", "02:00:00:00:00:02"))
        return f"-m mac {self.no()} --mac-source {address}"

    def packet_type(self) -> str:
        kind = self.one(("unicast", "broadcast", "multicast"))
        return f"-m pkttype {self.no()} --pkt-type {kind}"

    def address_type(self) -> str:
        kinds = ("LOCAL", "BROADCAST", "UNICAST", "MULTICAST", "LOCAL,BROADCAST")
        words = [
            f"{self.no()} --{side}-type {self.one(kinds)}" for side in self.some(("src", "dst"), 2)
        ]
        limit = " --limit-iface-in" if self.chance(0.1) else ""
        return "-m addrtype " + " ".join(words) + limit

    def range(self) -> str:
        side = self.one(("src", "dst"))
        return f"-m iprange {self.no()} --{side}-range {self.one(_RANGES[self.family])}"

    def mark(self) -> str:
        return f"-m mark {self.no()} --mark {self.one(('0x1/0xff', '0x0/0xff', '0x2/0x3'))}"

    def comment(self) -> str:
        return f'-m comment --comment "{self.one(("a word", "plain", "it says drop"))}"'

    def limit(self) -> str:
        return f"-m limit --limit {self.one(('1/hour', '5/min', '1000/sec'))}"

    def recent(self) -> str:
        action = self.one(("set", "update --seconds 60", "rcheck --hitcount 3", "remove"))
        return f"-m recent {self.no(0.1)} --{action} --name {self.one(('one', 'two'))}"

    def statistic(self) -> str:
        return f"-m statistic --mode nth --every {self.one(('2', '3'))} --packet 0"

    def hashlimit(self) -> str:
        return "-m hashlimit --hashlimit-upto 10/hour --hashlimit-mode srcip --hashlimit-name h"

    def string(self) -> str:
        return f"-m string {self.no()} --string {self.one(('abc', 'GET'))} --algo bm"

    def physical(self) -> str:
        return f"-m physdev {self.no()} --physdev-is-bridged"

    def target(self, protocol: str, users: Sequence[str]) -> str:
        if users and self.chance(0.25):
            return f"{self.one(('-j', '-j', '-j', '-g'))} {self.one(users)}"
        reset = ["-j REJECT --reject-with tcp-reset"] if protocol == "tcp" else []
        port = "icmp-port-unreachable" if self.four else "icmp6-port-unreachable"
        others = [
            "-j LOG --log-prefix lab", "-j NFLOG --nflog-group 3", "-j MARK --set-xmark 0x2/0x3",
            f"-j REJECT --reject-with {port}", "-j CONNMARK --set-xmark 0x4/0x4", "", *reset,
        ]  # fmt: skip
        plain = ["-j ACCEPT"] * 5 + ["-j DROP"] * 5 + ["-j RETURN"] * 3
        return self.one(plain if self.chance(0.75) else others)


def _names(four: bool) -> dict[str, str]:
    """Protocols by what their match is called, and as `-p` takes them."""
    icmp = "icmp" if four else "ipv6-icmp"
    return {"tcp": "tcp", "udp": "udp", "icmp": icmp, "sctp": "sctp", "dccp": "dccp",
            "udplite": "udplite", "gre": "47"}  # fmt: skip
