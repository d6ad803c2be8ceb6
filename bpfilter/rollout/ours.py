"""Telling our chains and rules apart from the operator's, from the text of iptables-save alone.

Ours are the entries BPF-INPUT and BPF-FORWARD, the chains BPF-<letter>-<12 hex digits>, and the
rules that jump to one of them from elsewhere. A name is not enough: an entry holds the bare rule
that clears the mark field, and the rule that jumps to it asks for that field; nothing of the
operator's jumps to the others, whose digits are the hash of what they hold, but rules of ours that
ask for one value of that field. A chain that was
flushed or edited is ours if the other entry stands beside it. All else is the operator's, whatever
its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from bpfilter.errors import RolloutError
from bpfilter.ruleset.lexer import lines_of

ENTRY_PREFIX = "BPF-"
_ENTRIES = frozenset({"BPF-INPUT", "BPF-FORWARD"})
_HASHED = re.compile(r"BPF-[A-Z]-[0-9a-f]{12}\Z")
_CLEAR = re.compile(r" -j MARK --set-xmark 0x0/(0x[0-9a-f]+)\s*\Z")
_ASKS = " -m mark ! --mark 0x0/"
_FIELD = re.compile(rf"{_ASKS}(0x[0-9a-f]+) ")
_EXPRESS = re.compile(r" -m mark --mark 0x[0-9a-f]+/(0x[0-9a-f]+) -j BPF-F-[0-9a-f]{12}\s*\Z")
_WHOLE_MARK = "0xffffffff"
_TARGET = re.compile(r" -[jg] (\S+)\s*\Z")
_APPEND = re.compile(r"(?:\[\d+:\d+\] )?-A (\S+)(.*)")


def chain_name(kind: str, rules: Sequence[str], identity: str = "") -> str:
    """The name of a chain that holds these rules (18 bytes; the kernel allows 28).

    `identity` keeps chains apart that hold the same words but state of their own (limit).
    """
    text = "\n".join([identity, *rules])
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{ENTRY_PREFIX}{kind}-{digest[:12]}"


def bears_our_name(chain: str) -> bool:
    """Whether we might make a chain of this name; it may still be the operator's."""
    return chain in _ENTRIES or _HASHED.match(chain) is not None


def strangers(save: str) -> tuple[str, ...]:
    """Chains of the `filter` table that bear names of ours and are not provably ours."""
    found = _chains(save)
    return tuple(name for name in found.rules if bears_our_name(name) and name not in found.ours)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Ours in one family's `filter` table: chains, and jumps to them as (chain, rule)."""

    chains: tuple[str, ...]
    jumps: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.chains or self.jumps)


def leftovers(save: str) -> Leftovers:
    """Ours in the text of iptables-save; works from the text alone, whatever made it."""
    found = _chains(save)
    return Leftovers(
        tuple(name for name in found.rules if name in found.ours),
        tuple(
            (name, rule.strip())
            for name, rules in found.rules.items()
            if name not in found.ours
            for rule in rules
            if _target(rule) in found.ours
        ),
    )


def contents(save: str) -> Mapping[str, Sequence[str]]:
    """The rules of each chain of ours, in iptables-save's own words."""
    found = _chains(save)
    return {name: tuple(rules) for name, rules in found.rules.items() if name in found.ours}


def heads(save: str) -> Mapping[str, Sequence[str]]:
    """The rules at the top of each chain of the operator's that jump to ours, one by one."""
    found = _chains(save)
    tops = {
        name: tuple(takewhile(lambda rule: _target(rule) in found.ours, rules))
        for name, rules in found.rules.items()
        if name not in found.ours
    }
    return {name: top for name, top in tops.items() if top}


def above(save: str) -> Mapping[str, Sequence[str]]:
    """The operator's rules that stand above a jump of ours, in the chains that have one."""
    found = _chains(save)
    tops: dict[str, Sequence[str]] = {}
    for name, rules in found.rules.items():
        jumps = [place for place, rule in enumerate(rules) if _target(rule) in found.ours]
        if name not in found.ours and jumps:
            top = rules[: jumps[-1]]
            tops[name] = [rule for rule in top if _target(rule) not in found.ours]
    return tops


def jumps(save: str) -> Mapping[str, Sequence[str]]:
    """The rules by which the operator's chains jump to ours, wherever they stand."""
    found: dict[str, list[str]] = {}
    for name, rule in leftovers(save).jumps:
        found.setdefault(name, []).append(rule)
    return found


@lru_cache(maxsize=4)
def strip(save: str) -> str:
    """The text of iptables-save without our chains and the rules that jump to them."""
    ours = _chains(save).ours
    kept = [
        line for table, line in _lines(save) if table != "filter" or not _is_our_line(line, ours)
    ]
    return "\n".join([*kept, ""])


def edit(
    save: str,
    chains: Mapping[str, Sequence[str]],
    jumps: Sequence[tuple[str, str]],
    known: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """iptables-restore --noflush text that leaves exactly these chains and jumps of ours.

    `save` is the present state. One transaction: a packet sees all of it or nothing. Jumps end up
    at the top of their chains in the given order. Empty if there is nothing to change. RolloutError
    if the operator has a chain of such a name.

    `known`: `contents` of when we made them. Chains named by what they hold that are still the
    same stay, and so does the state of their rules (limits, on nft).
    """
    taken = [name for name in strangers(save) if name in chains]
    if taken:
        raise stranger_error(taken)
    present = leftovers(save)
    if not present and not chains and not jumps:
        return ""
    now = contents(save)
    kept = {
        name for name, rules in (known or {}).items()
        if name not in _ENTRIES and now.get(name) == tuple(rules)
    }  # fmt: skip
    stale = [name for name in present.chains if name not in chains]
    made = {name: rules for name, rules in chains.items() if name not in kept}
    lines = [
        *(f"-D {chain} {rule}" for chain, rule in present.jumps),
        *(f":{name} - [0:0]" for name in (*stale, *made)),
        *(f"-X {name}" for name in stale),
        *(f"-A {name} {rule}" for name, rules in made.items() for rule in rules),
        *(f"-I {chain} 1 {rule}" for chain, rule in reversed(jumps)),
    ]
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def stranger_error(names: Sequence[str]) -> RolloutError:
    """The error for chains of the operator's that stand where ours would."""
    first = names[0]
    return RolloutError(
        f"chain {', '.join(names)} of the filter table bears a name that bpfilter uses for its own,"
        " and is not one that it made; nothing was changed",
        hint=f"rename it (`iptables -E {first} MY-{first}`), or remove it if nobody needs it",
    )


@dataclass(frozen=True, slots=True)
class _Chains:
    """The `filter` table: chain → rules as words behind `-A NAME`; and which chains are ours."""

    rules: Mapping[str, Sequence[str]]
    ours: frozenset[str]

    @classmethod
    def of(cls, save: str) -> _Chains:
        rules: dict[str, list[str]] = {}
        for table, line in _lines(save):
            if table != "filter":
                continue
            rule = _APPEND.match(line)
            if line.startswith(":"):
                rules.setdefault(line[1:].split(" ", 1)[0], [])
            elif rule is not None:
                rules.setdefault(rule[1], []).append(rule[2])
        jumps: dict[str, list[tuple[str, str]]] = {}
        for name, lines in rules.items():
            for line in lines:
                jumps.setdefault(_target(line), []).append((name, line))
        return cls(rules, _provably_ours(rules, jumps))


@lru_cache(maxsize=4)
def _chains(save: str) -> _Chains:
    """Kept for the texts of both families: each is asked about several times in a stage change."""
    return _Chains.of(save)


def forget_texts() -> None:
    """Let go of the texts that were asked about; to be called when a stage change is over."""
    strip.cache_clear()
    _chains.cache_clear()


def _provably_ours(
    rules: Mapping[str, Sequence[str]], jumps: Mapping[str, Sequence[tuple[str, str]]]
) -> frozenset[str]:
    found = {name for name in rules if name in _ENTRIES and _is_entry(rules, jumps, name)}
    asked = {name for name in _ENTRIES & rules.keys() if _asked(jumps.get(name), "")}
    if found | asked == _ENTRIES and (found or not any(rules[name] for name in asked)):
        # We always make both, and none beside an operator's. `iptables -F` empties them, and all
        # that jumped to them; who edits one of ours leaves the other.
        found |= asked
    hashed = {name for name in rules if _HASHED.match(name)}
    waiting = [name for name in rules if name not in found and name not in hashed]
    fields = _fields(rules, jumps, found)
    while waiting:
        # What the operator's chains jump to is the operator's.
        for rule in rules[waiting.pop()]:
            if (target := _target(rule)) in hashed and not _is_express(rule, fields):
                hashed.discard(target)
                waiting.append(target)
    return frozenset(found | hashed)


def _fields(
    rules: Mapping[str, Sequence[str]],
    jumps: Mapping[str, Sequence[tuple[str, str]]],
    entries: Iterable[str],
) -> frozenset[str]:
    """The mark fields that entries clear, or that packets are asked for on their way to them."""
    texts = [text for name in entries for text in rules[name]]
    callers = [text for name in entries for _, text in jumps.get(name, ())]
    cleared = (found[1] for text in texts if (found := _CLEAR.fullmatch(text)))
    asked = (found[1] for text in callers if (found := _FIELD.search(text)))
    return frozenset({*cleared, *asked} - {_WHOLE_MARK})


def _is_express(rule: str, fields: frozenset[str]) -> bool:
    found = _EXPRESS.search(rule)
    return found is not None and found[1] in fields


def _is_entry(
    rules: Mapping[str, Sequence[str]],
    jumps: Mapping[str, Sequence[tuple[str, str]]],
    name: str,
) -> bool:
    """Whether a chain clears a mark field, for packets that were asked for that field if for any.

    iptables-save prints the operator's `--set-mark 0` as clearing the whole mark; we never do.
    """
    masks = {found[1] for rule in rules[name] if (found := _CLEAR.fullmatch(rule))}
    masks.discard(_WHOLE_MARK)
    return any(_asked(jumps.get(name), f"{mask} ") for mask in masks)


def _asked(callers: Sequence[tuple[str, str]] | None, mask: str) -> bool:
    """Whether one of the rules that jump to a chain asks for the field; true if there are none."""
    return not callers or any(f"{_ASKS}{mask}" in rule for _, rule in callers)


def _lines(save: str) -> Iterator[tuple[str, str]]:
    table = ""
    for line in lines_of(save):
        if line.startswith("*"):
            table = line[1:].strip()
        yield table, line


def _is_our_line(line: str, ours: frozenset[str]) -> bool:
    if line.startswith(":"):
        return line[1:].split(" ", 1)[0] in ours
    rule = _APPEND.match(line)
    return rule is not None and (rule[1] in ours or _target(rule[2]) in ours)


def _target(rule: str) -> str:
    """The last word of a rule that ends with a jump or a goto; empty for other rules."""
    found = _TARGET.search(rule)
    return found[1] if found else ""
