"""Two network namespaces joined by a veth pair: one sends, the other filters."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bpfilter.demo.network import Namespaces, inside
from bpfilter.errors import LabError
from bpfilter.ruleset.fields import Family

SENDING, FILTERING = "g0", "v0"
_LOCK = "XTABLES_LOCKFILE"


class Network(Namespaces):
    """The pair; leaving the context removes it. Every destination is local to the filtering side.

    Packets that the filter accepts are dropped right after it, in the security table, so that no
    socket has a part in what is measured.
    """

    def __init__(self, name: str = "") -> None:
        """`name` tells several networks of one process apart."""
        self.sender = f"bpfilter-bench-{os.getpid()}{name}-s"
        self.filter = f"bpfilter-bench-{os.getpid()}{name}-f"
        super().__init__(self.sender, self.filter)

    def build(self) -> None:
        """The veth pair, and a route that makes every destination local."""
        super().build()
        _run("ip", "-n", self.filter, "link", "add", FILTERING, "type", "veth",
             "peer", "name", SENDING, "netns", self.sender)  # fmt: skip
        with inside(self.filter):
            for name in ("all", "default", FILTERING):
                Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
        for name, device in ((self.sender, SENDING), (self.filter, FILTERING)):
            _run("ip", "-n", name, "link", "set", device, "up")
        for family, everything in (("-4", "default"), ("-6", "::/0")):
            _run("ip", family, "-n", self.filter, "route", "add", "local", everything,
                 "dev", "lo", "table", "100")  # fmt: skip
            _run("ip", family, "-n", self.filter, "rule", "add", "iif", FILTERING,
                 "lookup", "100", "priority", "1")  # fmt: skip
        # With GRO on, veth takes frames by NAPI, as a network card's driver does.
        _run("ip", "netns", "exec", self.filter, "ethtool", "-K", FILTERING, "gro", "on")

    def restore(self, backend: str, text: str, *words: str, family: Family = Family.IPV4) -> None:
        """Load rules on the filtering side by iptables-restore."""
        tool = "iptables" if family is Family.IPV4 else "ip6tables"
        self.run(f"{tool}-{backend}-restore", *words, stdin=text)

    def clear(self, backend: str, family: Family = Family.IPV4) -> None:
        """Remove every rule of one backend on the filtering side.

        Legacy keeps its tables, and what a policy was, until it is given another one.
        """
        names = ("INPUT", "FORWARD", "OUTPUT") if backend == "legacy" else ()
        policies = "".join(f":{name} ACCEPT [0:0]\n" for name in names)
        empty = "".join(f"*{table}\n{policies}COMMIT\n" for table in ("filter", "security"))
        self.restore(backend, empty, family=family)

    def run(self, *words: str, stdin: str | None = None) -> None:
        """Run a tool on the filtering side; LabError with its message if it fails."""
        _run("ip", "netns", "exec", self.filter, *words, stdin=stdin)

    def received(self) -> int:
        """Packets that the filtering interface has received."""
        with inside(self.filter):
            for line in Path("/proc/net/dev").read_text().splitlines():
                name, _, numbers = line.strip().partition(":")
                if name == FILTERING:
                    return int(numbers.split()[1])
        raise LabError(f"{FILTERING} is gone", hint="run the benchmark again")


def _run(*words: str, stdin: str | None = None) -> None:
    environment = os.environ | {_LOCK: f"/run/bpfilter-bench-{os.getpid()}.lock"}
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=120, env=environment
    )
    if done.returncode != 0:
        raise LabError(
            f"{' '.join(words)}: {done.stderr.strip()}",
            hint="the benchmark needs root, network namespaces, iptables and ethtool",
        )
