"""An independent second reading of the legacy backend (libiptc), compared with ours.

Both know aliases: `-m state` may be shown as conntrack, `-j NOTRACK` as CT. Only the raw decoding
is used: python-iptables' own conversion of masks to prefixes is wrong for masks with holes
(255.255.0.255 becomes /24). Where its decoding of options is known to fail (`DEFECTS`), a
difference gives a note; any other is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpfilter.errors import ReadersDisagree
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.matches.common import BadWord
from bpfilter.ruleset.matches.header import parse_network, protocol_number
from bpfilter.ruleset.model import Chain, Rule, Ruleset, TargetKind
from bpfilter.ruleset.writer import rule_words

SECONDS = 30.0
_REAL_NAMES = {"state": "conntrack", "NOTRACK": "CT", "icmpv6": "icmp6"}


@dataclass(frozen=True, slots=True)
class Defect:
    """A way in which python-iptables 1.2.0 decodes words wrongly, and the words it concerns."""

    what: str
    concerns: Callable[[Sequence[str]], bool]


DEFECTS = (
    Defect("text over 1 024 bytes is cut", lambda words: sum(map(len, words)) > 900),
    Defect("an apostrophe keeps its backslash", lambda words: any("'" in w for w in words)),
    Defect(
        "a value that is `!` or begins with `--` is taken for an option",
        lambda words: any(w == "!" or w.startswith("--") for w in _values(words)),
    ),
    Defect("an option that stands twice is shown once", lambda words: _repeats(words)),
    Defect(
        "text that is not UTF-8 is not decoded",
        lambda words: any("\udc80" <= c <= "\udcff" for w in words for c in w),
    ),
)


@dataclass(frozen=True, slots=True)
class View:
    """What both readers can say of a rule; addresses as (negated, value, mask)."""

    source: tuple[bool, int, int]
    destination: tuple[bool, int, int]
    protocol: tuple[bool, int]
    interfaces: tuple[str, str]
    fragment: str
    matches: tuple[str, ...]
    target: str
    goto: bool


def second_reading(ruleset: Ruleset, seconds: float = SECONDS) -> tuple[str, ...]:
    """Read the same legacy tables through libiptc and compare; returns notes.

    Only tables that our reader saw are read, since reading a legacy table creates it. Raises
    ReadersDisagree with both readings. A reader that fails or takes longer than `seconds` gives a
    note: it is a second opinion, not a gate.
    """
    command = [sys.executable, "-m", "bpfilter.ruleset.libiptc_child", ruleset.family]
    try:
        done = subprocess.run(
            [*command, *ruleset.tables], capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return (f"the second reader (libiptc) did not finish within {seconds:.0f} s",)
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()[-1:]
        return (f"the second reader (libiptc) failed: {''.join(last) or 'no message'}",)
    return tuple(_compare(ruleset, json.loads(done.stdout)))


def _compare(ruleset: Ruleset, document: Mapping[str, Any]) -> Iterator[str]:
    for name, table in ruleset.tables.items():
        theirs = document[name]
        if set(theirs) != set(table.chains):
            raise _disagreement(f"chains of table {name}", sorted(table.chains), sorted(theirs))
        for chain in table.chains.values():
            yield from _compare_chain(name, chain, theirs[chain.name], ruleset.family)


def _compare_chain(
    table: str, chain: Chain, theirs: Mapping[str, Any], family: Family
) -> Iterator[str]:
    where = f"{table} {chain.name}"
    if theirs["policy"] != chain.policy:
        raise _disagreement(f"policy of {where}", chain.policy, theirs["policy"])
    if len(theirs["rules"]) != len(chain.rules):
        raise _disagreement(f"rules in {where}", len(chain.rules), len(theirs["rules"]))
    for rule, decoded in zip(chain.rules, theirs["rules"], strict=True):
        ours, other = _our_view(rule, family), _their_view(decoded, family)
        if ours != other:
            raise _disagreement(f"rule {where} {rule.number}", rule_words(rule), decoded)
        yield from _compare_words(rule, decoded)


def _compare_words(rule: Rule, decoded: Mapping[str, Any]) -> Iterator[str]:
    """Options of matches and target, word by word, in any order; notes for known defects."""
    matches = [match.words[2:] for match in rule.matches if not match.header]
    theirs = [words for _, words in decoded["matches"]]
    pairs = zip([*matches, rule.target.words[2:]], [*theirs, decoded["target words"]], strict=True)
    for ours, other in pairs:
        if other is not None and sorted(ours) == sorted(other):
            continue
        defect = next((defect for defect in DEFECTS if defect.concerns(ours)), None)
        if defect is None:
            raise _disagreement(f"rule {rule.ref}", " ".join(ours), other)
        yield f"{rule.ref}: not compared word by word, since in libiptc {defect.what}"


def _values(words: Sequence[str]) -> Sequence[str]:
    """Words that are values for certain: the second of two, as in `--comment VALUE`."""
    return words[1:2] if len(words) == 2 else [w for w in words if w.startswith("--") and " " in w]


def _repeats(words: Sequence[str]) -> bool:
    options = [word for word in words if word.startswith("--")]
    return len(options) != len(set(options))


def _disagreement(what: str, ours: object, theirs: object) -> ReadersDisagree:
    return ReadersDisagree(
        f"two readers of the legacy tables disagree on {what}:\n"
        f"  iptables-save: {ours}\n  libiptc:       {theirs}",
        hint="if the rules changed between the two readings, run the command again",
    )


def _our_view(rule: Rule, family: Family) -> View:
    found: dict[str, tuple[bool, str]] = {}
    for match in rule.matches:
        if match.header:
            negated = match.words[0] == "!"
            found[match.words[negated]] = (negated, match.words[-1])
    target = rule.target
    return View(
        _address(found.get("-s"), family),
        _address(found.get("-d"), family),
        _protocol(found.get("-p")),
        (_interface(found.get("-i")), _interface(found.get("-o"))),
        str(any(match.words == ("-f",) for match in rule.matches)),
        tuple(_real(match.name) for match in rule.matches if not match.header),
        _real(target.name),
        target.kind is TargetKind.GOTO,
    )


def _their_view(decoded: Mapping[str, Any], family: Family) -> View:
    def words(key: str) -> tuple[bool, str] | None:
        text = decoded[key]
        return None if not text else (text.startswith("!"), text.lstrip("!").strip())

    protocol = words("protocol")
    return View(
        _address(words("source"), family),
        _address(words("destination"), family),
        _protocol(None if protocol == (False, "ip") else protocol),
        (_interface(words("in")), _interface(words("out"))),
        decoded["fragment"].removeprefix("!"),
        tuple(_real(name) for name, _ in decoded["matches"]),
        _real(decoded["target"] or ""),
        bool(decoded["goto"]),
    )


def _address(found: tuple[bool, str] | None, family: Family) -> tuple[bool, int, int]:
    if found is None:
        return False, 0, 0
    value, mask = parse_network(found[1], family)
    return found[0], value & mask, mask


def _protocol(found: tuple[bool, str] | None) -> tuple[bool, int]:
    if found is None:
        return False, 0
    try:
        return found[0], protocol_number(found[1])
    except BadWord:
        return found[0], -1


def _interface(found: tuple[bool, str] | None) -> str:
    if found is None or found == (False, "+"):
        return ""
    return ("!" if found[0] else "") + found[1]


def _real(name: str) -> str:
    return _REAL_NAMES.get(name, name)
