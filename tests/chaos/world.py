"""A firewall between namespaces, its rules, its traffic and the book about it.

A *host* has one neighbour, `peer`. A *router* has another side behind it, `back`, too: the peer
sends to the router itself (INPUT) and through it (FORWARD). Either firewall sends to all its
neighbours (OUTPUT).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.chaos.book import OUTPUT, Book, Kind, Verdict
from tests.chaos.namespaces import entered
from tests.chaos.packets import Way, way
from tests.chaos.rules import Rules, barring
from tests.rollout.network import call, run

_COUNT = itertools.count()
FIREWALL = {4: "10.97.1.1", 6: "fd97:1::1"}
PEER = {4: "10.97.1.2", 6: "fd97:1::2"}
INSIDE = {4: "10.97.3.1", 6: "fd97:3::1"}
BACK = {4: "10.97.3.2", 6: "fd97:3::2"}
_LENGTH = {4: 24, 6: 64}
_TOOL = {4: "iptables", 6: "ip6tables"}


class World:
    """A context manager; leaving it removes the namespaces. `backend`: legacy or nft."""

    def __init__(self, backend: str, *, router: bool, filler: int = 0) -> None:
        tag = f"bpfc{os.getpid()}x{next(_COUNT)}"
        self.fw, self.peer, self.back = f"{tag}f", f"{tag}p", f"{tag}b"
        self.backend = backend
        self.router = router
        self.inbound = ("INPUT", "FORWARD") if router else ("INPUT",)
        self.rules = {family: Rules(family, (*self.inbound, OUTPUT), filler) for family in (4, 6)}
        self.book = Book(self._verdicts())
        self.lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"{'router' if self.router else 'host'} iptables-{self.backend}"

    @property
    def interfaces(self) -> tuple[str, ...]:
        return ("v1", "v3") if self.router else ("v1",)

    @property
    def namespaces(self) -> Sequence[str]:
        return (self.fw, self.peer, self.back) if self.router else (self.fw, self.peer)

    @property
    def receivers(self) -> Mapping[str, str]:
        """Chain → the namespace in which what it accepted arrives.

        What a router sends behind itself arrives where FORWARD's packets do.
        """
        places = {"INPUT": self.fw, "FORWARD": self.back, OUTPUT: self.peer}
        return {chain: places[chain] for chain in (*self.inbound, OUTPUT)}

    def address(self, chain: str, family: int) -> str:
        """Whom the peer, or for OUTPUT the firewall, writes to so that this chain judges it."""
        return {"INPUT": FIREWALL, "FORWARD": BACK, OUTPUT: PEER}[chain][family]

    def way(self, chain: str, family: int) -> Way:
        source = FIREWALL if chain == OUTPUT else PEER
        return way(source[family], self.address(chain, family))

    def ways(self, chain: str, family: int) -> Sequence[Way]:
        """All that this chain judges: a router's own packets leave on both sides."""
        behind = [way(INSIDE[family], BACK[family])] if self.router and chain == OUTPUT else []
        return [self.way(chain, family), *behind]

    def __enter__(self) -> World:
        try:
            for name in self.namespaces:
                call("ip", "netns", "add", name)
                call("ip", "-n", name, "link", "set", "lo", "up")
                with entered(name):
                    for which in ("all", "default"):
                        place = Path(f"/proc/sys/net/ipv6/conf/{which}")
                        (place / "keep_addr_on_down").write_text("1")
            self._pair("v1", "p1", self.peer, FIREWALL, PEER)
            if self.router:
                self._pair("v3", "b1", self.back, INSIDE, BACK)
                self._routes()
            self._neighbours()
            self.macs = {"v1": self._mac(self.fw, "v1"), "p1": self._mac(self.peer, "p1")}
            self.restore()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _pair(
        self, here: str, there: str, other: str, ours: Mapping[int, str], theirs: Mapping[int, str]
    ) -> None:
        call("ip", "-n", self.fw, "link", "add", here, "type", "veth", "peer", "name", there,
             "netns", other)  # fmt: skip
        for namespace, device, addresses in ((self.fw, here, ours), (other, there, theirs)):
            for family, address in addresses.items():
                extra = ["nodad"] if family == 6 else []
                place = f"{address}/{_LENGTH[family]}"
                call("ip", "-n", namespace, "addr", "add", place, "dev", device, *extra)
            call("ip", "-n", namespace, "link", "set", device, "up")

    def _routes(self) -> None:
        with entered(self.fw):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for family in (4, 6):
            words = ["ip", f"-{family}", "-n"]
            call(*words, self.back, "route", "replace", "default", "via", INSIDE[family])
            call(*words, self.peer, "route", "replace", "default", "via", FIREWALL[family])

    def _neighbours(self) -> None:
        """What the firewall sends shall not wait for an answer that its own rules may drop."""
        sides = [("v1", self.peer, "p1", PEER)]
        if self.router:
            sides.append(("v3", self.back, "b1", BACK))
        for device, namespace, there, addresses in sides:
            mac = self._mac(namespace, there).hex(":")
            for address in addresses.values():
                call("ip", "-n", self.fw, "neigh", "replace", address, "lladdr", mac,
                     "dev", device, "nud", "permanent")  # fmt: skip

    def _mac(self, namespace: str, device: str) -> bytes:
        with entered(namespace), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
            probe.bind((device, 0))
            return bytes(probe.getsockname()[4])

    def _verdicts(self) -> dict[Kind, Verdict]:
        return {k: v for rules in self.rules.values() for k, v in rules.verdicts().items()}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Commands of this context bring the firewall to what `rules` say when it begins."""
        with self.book.changing(self._verdicts()):
            yield

    def restore(self) -> None:
        """Load all rules anew, as iptables-restore does at boot."""
        for rules in self.rules.values():
            rules.flushed = rules.wiped = False
        with self.changing(), entered(self.fw):
            for family, rules in self.rules.items():
                call(f"{_TOOL[family]}-{self.backend}-restore", data=rules.text())

    def iptables(self, family: int, *words: str) -> str:
        with entered(self.fw):
            return call(f"{_TOOL[family]}-{self.backend}", *words)

    def edit(self, rng: random.Random) -> tuple[int, list[str]]:
        """One random edit of one family's rules."""
        family = rng.choice((4, 6))
        words = self.rules[family].edit(rng)
        with self.changing():
            self.iptables(family, *words)
        return family, words

    def flush(self) -> None:
        """`iptables -F`: only the policy, DROP, is left."""
        for rules in self.rules.values():
            rules.flushed = True
        with self.changing():
            for family in self.rules:
                self.iptables(family, "-F")

    def wipe(self) -> None:
        """`nft flush ruleset`: nothing is left, everything is accepted."""
        for rules in self.rules.values():
            rules.wiped = True
        with self.changing(), entered(self.fw):
            call("nft", "flush", "ruleset")

    def reach(self) -> None:
        """Wait until both sides answer the peer again, after an interface was down."""
        if self.router:
            self._routes()
        self._neighbours()
        for chain in self.inbound:
            for family in (4, 6):
                words = ["ping", "-n", "-q", "-c", "1", "-W", "1", self.address(chain, family)]
                for _ in range(10):
                    with entered(self.peer):
                        if run(*words).returncode == 0:
                            break

    def decided(self) -> int:
        """How many packets our dispatch was given with a code so far, since it was installed."""
        return self._counted("-A (INPUT|FORWARD) .* -j BPF-")

    def barred(self) -> int:
        """How many packets iptables dropped by the rule that OUTPUT has alone."""
        return self._counted(f"-A OUTPUT {re.escape(barring())}$")

    def _counted(self, pattern: str) -> int:
        """Packets at the rules that match, of both families."""
        total = 0
        for family in self.rules:
            with entered(self.fw):
                saved = run(f"{_TOOL[family]}-{self.backend}-save", "-c", "-t", "filter").stdout
            for line in saved.splitlines():
                if re.search(pattern, line):
                    with suppress(ValueError):
                        total += int(line[1 : line.index(":")])
        return total
