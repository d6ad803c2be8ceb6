"""facebook/bpfilter beside ours, where its `bfcli` is on PATH and its daemon runs.

Its language: https://bpfilter.io/usage/bfcli.html. Rules that it cannot express take it out of the
comparison, with its own error.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from bench.network import FILTERING, Network
from bench.workloads import Workload
from bpfilter.demo.network import inside

_ADDRESSES = {"-s": ("ip4.saddr", "ip4.snet"), "-d": ("ip4.daddr", "ip4.dnet")}
_PORTS = {"--sport": "sport", "--dport": "dport"}


@contextmanager
def facebook(network: Network, work: Workload) -> Iterator[None]:
    """Its XDP program at the filtering interface."""
    with inside(network.filter):
        index = socket.if_nametoindex(FILTERING)
    network.run("bfcli", "ruleset", "set", "--from-str", translated(work.text, index))
    try:
        yield
    finally:
        network.run("bfcli", "ruleset", "flush")


def translated(text: str, index: int) -> str:
    """Filter INPUT in its language: addresses, protocol and ports of ACCEPT and DROP rules."""
    policy = "DROP" if ":INPUT DROP" in text else "ACCEPT"
    lines = [f"chain bench BF_HOOK_XDP{{ifindex={index}}} {policy}"]
    for line in text.splitlines():
        if line.startswith("-A INPUT "):
            words = line.split()[2:]
            lines.append(_rule(dict(zip(words[::2], words[1::2], strict=False))))
    return "\n".join(lines)


def _rule(options: dict[str, str]) -> str:
    matches = []
    for word, (one, net) in _ADDRESSES.items():
        if word in options:
            address, _, length = options[word].partition("/")
            matches.append(f"{one} eq {address}" if length == "32" else f"{net} eq {options[word]}")
    if "-p" in options:
        matches.append(f"meta.l4_proto eq {options['-p']}")
    for word, name in _PORTS.items():
        if word in options:
            low, colon, high = options[word].partition(":")
            how = f"range {low}-{high}" if colon else f"eq {low}"
            matches.append(f"{options['-p']}.{name} {how}")
    return " ".join(["    rule", *matches, "counter", options["-j"]])
