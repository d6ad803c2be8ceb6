"""Which rules of `filter` two texts of iptables-save do not share; the rest is not parsed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bpfilter.errors import RulesetRefused, TooMuchEdited
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.grammar import parse
from bpfilter.ruleset.lexer import lines_of
from bpfilter.ruleset.model import Backend, Rule, Ruleset

_MOST_LINES = 512
_CHAIN = re.compile(r":(\S+) (\S+)")
_RULE = re.compile(r"(?:\[\d+:\d+\] )?-A (\S+)")
_COUNTERS = re.compile(r"^\[\d+:\d+\] | \[\d+:\d+\]$")


@dataclass(frozen=True, slots=True)
class Edit:
    """What was edited in one family's filter table.

    `rules`: every packet that can get another verdict matches one of these, as it is now or was.
    `count`: how many were added, removed or moved. `lines`: those of chains that are on both
    sides, by chain, in iptables-save's words. `read`: all of them; their numbers mean nothing.
    """

    rules: tuple[Rule, ...]
    count: int
    lines: Mapping[str, frozenset[str]]
    read: Ruleset


def plain(save: str) -> str:
    """The text of iptables-save without comments and counters; it ends with a line's end."""
    lines = [
        line if line[:1] == "-" else _COUNTERS.sub("", line)
        for line in lines_of(save)
        if line[:1] != "#"
    ]
    return "\n".join([*lines, ""])


def edit_between(before: str, after: str, family: Family, backend: Backend) -> Edit | None:
    """What happened to the filter table between two `plain` texts; None if nothing did.

    A packet that no rule of the edit matches takes the same way through a chain with and without
    them. TooMuchEdited where another table, a policy or more rules than a few were edited.
    """
    if before == after:
        return None
    old, new = _tables(before), _tables(after)
    for name in old.keys() | new.keys():
        if name != "filter" and old.get(name) != new.get(name):
            raise TooMuchEdited(f"table {name} was edited")
    if "filter" not in old or "filter" not in new:
        raise TooMuchEdited("there was no filter table, or there is none any more")
    left, right = _chains(old["filter"]), _chains(new["filter"])
    for name in left.keys() & right.keys():
        if left[name].policy != right[name].policy:
            raise TooMuchEdited(f"the policy of {name} was edited")
    edited = {
        name: _edited(left[name].rules, right[name].rules) for name in left.keys() & right.keys()
    }
    # Rules of a chain that one side lacks are reached through a jump that was edited with it.
    fresh = [line for name in right.keys() - left.keys() for line in right[name].rules]
    lines = [line for found in edited.values() for line in found]
    if len(lines) + len(fresh) > _MOST_LINES:
        raise TooMuchEdited(f"{len(lines) + len(fresh)} rules were edited")
    read = _read([*lines, *fresh], {**left, **right}, family, backend)
    return Edit(tuple(read.rules())[: len(lines)], len(lines) + len(fresh), edited, read)


@dataclass(slots=True)
class _Chain:
    policy: str
    rules: list[str]


def _tables(text: str) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines_of(text):
        if line.startswith("*"):
            current = tables.setdefault(line[1:].strip(), [])
        elif line and line != "COMMIT":
            current.append(line)
    return tables


def _chains(lines: Iterable[str]) -> dict[str, _Chain]:
    chains: dict[str, _Chain] = {}
    for line in lines:
        if found := _CHAIN.match(line):
            chains[found[1]] = _Chain(found[2], [])
        elif found := _RULE.match(line):
            chains[found[1]].rules.append(line)
    return chains


def _edited(before: Sequence[str], after: Sequence[str]) -> frozenset[str]:
    """Rules such that both lists without them are the same; in linear time, so not the fewest."""
    before, after = _middles(before, after)
    left, right = Counter(before), Counter(after)
    differ = {line for line in left.keys() | right.keys() if left[line] != right[line]}
    moved = _middles(
        [line for line in before if line not in differ],
        [line for line in after if line not in differ],
    )
    return frozenset(differ.union(*moved))


def _middles(before: Sequence[str], after: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Both without the rules that they share at their beginning and at their end."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and before[start] == after[start]:
        start += 1
    end = 0
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return before[start : len(before) - end], after[start : len(after) - end]


def _read(
    lines: Sequence[str], chains: Mapping[str, _Chain], family: Family, backend: Backend
) -> Ruleset:
    """These rules in one chain, so that they stay in this order."""
    name = "EDITED"
    while name in chains:
        name += "-"
    rules = [_RULE.sub(f"-A {name}", line, count=1) for line in lines]
    declared = [f":{other} {chain.policy} [0:0]" for other, chain in chains.items()]
    text = "\n".join(["*filter", *declared, f":{name} - [0:0]", *rules, "COMMIT", ""])
    try:
        tables = parse(text, family, "edited rules")
        return Ruleset(family, backend, tables, source="edited rules")
    except RulesetRefused as error:
        raise TooMuchEdited(f"an edited rule cannot be read: {error.message}") from None
