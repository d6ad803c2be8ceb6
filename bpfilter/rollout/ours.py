"""Telling our chains and rules apart from the operator's, from names alone.

Ours are the chains BPF-INPUT, BPF-FORWARD and BPF-<letter>-<12 hex digits>, and the rules that jump
to one of them from elsewhere. A name's digits are the hash of what the chain holds, so a saved and
later restored chain can only ever mean what it meant.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

ENTRY_PREFIX = "BPF-"
_OURS = re.compile(r"BPF-(?:INPUT|FORWARD|OUTPUT|[A-Z]-[0-9a-f]{12})\Z")
_TARGET = re.compile(r" -[jg] (\S+)\s*\Z")
_APPEND = re.compile(r"(?:\[\d+:\d+\] )?-A (\S+)(.*)")


def chain_name(kind: str, rules: Sequence[str], identity: str = "") -> str:
    """The name of a chain that holds these rules (18 bytes; the kernel allows 28).

    `identity` keeps chains apart that hold the same words but state of their own (limit).
    """
    text = "\n".join([identity, *rules])
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{ENTRY_PREFIX}{kind}-{digest[:12]}"


def is_ours(chain: str) -> bool:
    """Whether a chain of this name was made by us."""
    return _OURS.match(chain) is not None


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Ours in one family's `filter` table: chains, and jumps to them as (chain, rule)."""

    chains: tuple[str, ...]
    jumps: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.chains or self.jumps)


def leftovers(save: str) -> Leftovers:
    """Ours in the text of iptables-save; works from the text alone, whatever made it."""
    chains: list[str] = []
    jumps: list[tuple[str, str]] = []
    for table, line in _lines(save):
        if table != "filter":
            continue
        if line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            if is_ours(name):
                chains.append(name)
        elif (jump := _foreign_jump(line)) is not None:
            jumps.append(jump)
    return Leftovers(tuple(chains), tuple(jumps))


def strip(save: str) -> str:
    """The text of iptables-save without our chains and the rules that jump to them."""
    kept = []
    for table, line in _lines(save):
        if table == "filter" and _is_our_line(line):
            continue
        kept.append(line)
    return "\n".join([*kept, ""])


def edit(save: str, chains: Mapping[str, Sequence[str]], jumps: Sequence[tuple[str, str]]) -> str:
    """iptables-restore --noflush text that leaves exactly these chains and jumps of ours.

    `save` is the present state. One transaction: a packet sees all of it or nothing. Jumps end up
    at the top of their chains in the given order. Empty if there is nothing to change.
    """
    present = leftovers(save)
    if not present and not chains and not jumps:
        return ""
    stale = [name for name in present.chains if name not in chains]
    lines = [
        *(f"-D {chain} {rule}" for chain, rule in present.jumps),
        *(f":{name} - [0:0]" for name in (*stale, *chains)),
        *(f"-X {name}" for name in stale),
        *(f"-A {name} {rule}" for name, rules in chains.items() for rule in rules),
        *(f"-I {chain} 1 {rule}" for chain, rule in reversed(jumps)),
    ]
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def _lines(save: str) -> Iterator[tuple[str, str]]:
    table = ""
    for line in save.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        yield table, line


def _is_our_line(line: str) -> bool:
    if line.startswith(":"):
        return is_ours(line[1:].split(" ", 1)[0])
    rule = _APPEND.match(line)
    return rule is not None and (is_ours(rule[1]) or _foreign_jump(line) is not None)


def _foreign_jump(line: str) -> tuple[str, str] | None:
    """(chain, rule) of a rule outside our chains that jumps into them."""
    rule = _APPEND.match(line)
    if rule is None or is_ours(rule[1]):
        return None
    target = _TARGET.search(rule[2])
    return (rule[1], rule[2].strip()) if target is not None and is_ours(target[1]) else None
