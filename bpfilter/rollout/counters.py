"""The rules' counters as they would be without us: the kernel's, and what programs decided.

Packets that programs decide no longer move the original rules' counters. What is added:
- dynamic rules that iptables executes in our chains: those copies' own counters, exactly;
- other rules: packets that the program found to end there whatever their connection state;
- jumps: the sum of what ended behind them.
Where the connection state says at which rule a packet ends, the program does not know it: such
packets are `possible` at each of those rules and counted at none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpfilter.rollout import ours
from bpfilter.rollout.detail import ask_detail
from bpfilter.rollout.journal import Stage, running
from bpfilter.rollout.prepare import find_backend
from bpfilter.rollout.tables import Tables
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.lexer import lines_of
from bpfilter.ruleset.model import Backend, Chain, Counters, RuleRef, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import rule_words

_COUNTED = re.compile(r"\[(\d+):(\d+)\] -A (\S+) ?(.*)")


@dataclass(frozen=True, slots=True)
class Merged:
    """Packets and bytes of one rule (number 0: the policy): the kernel's, and those decided.

    `possible`: decided packets that may have ended here, by their connection state.
    """

    ref: RuleRef
    text: str
    kernel: tuple[int, int]
    decided: tuple[int, int]
    possible: int

    @property
    def packets(self) -> int:
        return self.kernel[0] + self.decided[0]

    @property
    def bytes(self) -> int:
        return self.kernel[1] + self.decided[1]


def counters(directory: Path, families: tuple[Family, ...] = tuple(Family)) -> dict[str, Any]:
    """The merged counters of this namespace's rules, in iptables' order, as JSON values.

    Raises what reading live rules raises. Without a daemon there is nothing but the kernel's.
    """
    backend = find_backend(None)
    detail = _detail(directory)
    return {
        "backend": backend,
        "rules": [
            _document(family, rule)
            for family in families
            for rule in read_merged(family, backend, detail)
        ],
    }


def _detail(directory: Path) -> Sequence[Mapping[str, Any]]:
    """The rules of `rollout.detail`; none where nothing is deployed."""
    found = running(directory)
    # A service without a deployment answers, but has nothing to tell.
    idle = found is None or found[1] is Stage.OFF
    return () if idle else ask_detail(directory)["rules"]


def with_traffic(ruleset: Ruleset, directory: Path) -> tuple[Ruleset, bool]:
    """A live or enforced ruleset with the packets that its rules met: at most so many.

    Those that iptables counted, and those that programs decided or may have decided there; and
    whether each packet is counted once only. Rules that are not the live ones any more have no
    counters. Raises what reading live rules raises.
    """
    if ruleset.backend is None:
        return ruleset, True
    found = read_merged(ruleset.family, ruleset.backend, _detail(directory))
    known = {(each.ref, each.text): each for each in found}
    tables = {
        name: replace(
            table, chains={n: _counted(name, chain, known) for n, chain in table.chains.items()}
        )
        for name, table in ruleset.tables.items()
    }
    return replace(ruleset, tables=tables), not any(each.possible for each in found)


def _counted(table: str, chain: Chain, known: Mapping[tuple[RuleRef, str], Merged]) -> Chain:
    def counters_of(ref: RuleRef, text: str) -> Counters | None:
        found = known.get((ref, text))
        return None if found is None else Counters(found.packets + found.possible, found.bytes)

    rules = tuple(
        replace(
            rule,
            counters=counters_of(rule.ref, f"-A {chain.name} {rule_words(rule)}".rstrip()),
        )
        for rule in chain.rules
    )
    policy = counters_of(RuleRef(table, chain.name, 0), f"-P {chain.name} {chain.policy}")
    return replace(chain, rules=rules, counters=policy)


def read_merged(
    family: Family, backend: Backend, detail: Sequence[Mapping[str, Any]]
) -> list[Merged]:
    """One family's rules with their counters; `detail`: the rules of `rollout.detail`."""
    save = Tables(family, backend).save(counters=True)
    rest = read_text(ours.strip(save), family=family, backend=backend)
    known = {
        RuleRef(rule["table"], rule["chain"], rule["number"]): rule
        for rule in detail
        if rule["family"] == family
    }
    return list(merge(rest, known, copies(save)))


def copies(save: str) -> Mapping[str, tuple[int, int]]:
    """What our chains counted, by the rules' words."""
    mine = set(ours.contents(save))
    found: dict[str, tuple[int, int]] = {}
    for line in lines_of(save):
        counted = _COUNTED.fullmatch(line.rstrip())
        if counted is not None and counted[3] in mine:
            packets, size = found.get(counted[4], (0, 0))
            found[counted[4]] = (packets + int(counted[1]), size + int(counted[2]))
    return found


def merge(
    ruleset: Ruleset,
    known: Mapping[RuleRef, Mapping[str, Any]],
    copied: Mapping[str, tuple[int, int]],
) -> Iterator[Merged]:
    """Every rule, and each built-in chain's policy before the chain's rules."""
    written: dict[str, int] = {}
    for rule in ruleset.rules():
        written[rule_words(rule)] = written.get(rule_words(rule), 0) + 1
    for table in ruleset.tables.values():
        for chain in table.chains.values():
            if chain.policy is not None:
                ref = RuleRef(table.name, chain.name, 0)
                found = chain.counters
                kernel = (0, 0) if found is None else (found.packets, found.bytes)
                yield _merged(ref, f"-P {chain.name} {chain.policy}", kernel, known.get(ref), None)
            for rule in chain.rules:
                kernel = (
                    (0, 0)
                    if rule.counters is None
                    else (rule.counters.packets, rule.counters.bytes)
                )
                words = rule_words(rule)
                detail = known.get(rule.ref)
                executed = copied.get(words, (0, 0)) if written[words] == 1 else (0, 0)
                item = detail is not None and detail["item"]
                yield _merged(
                    rule.ref, f"-A {chain.name} {words}".rstrip(), kernel, detail,
                    executed if item else None,
                )  # fmt: skip


def _merged(
    ref: RuleRef,
    text: str,
    kernel: tuple[int, int],
    detail: Mapping[str, Any] | None,
    executed: tuple[int, int] | None,
) -> Merged:
    if executed is not None:
        return Merged(ref, text, kernel, executed, 0)
    if detail is None:
        return Merged(ref, text, kernel, (0, 0), 0)
    decided = detail["decided"]
    return Merged(ref, text, kernel, (decided["packets"], decided["bytes"]), decided["possible"])


def _document(family: Family, rule: Merged) -> dict[str, Any]:
    return {
        "family": family,
        "table": rule.ref.table,
        "chain": rule.ref.chain,
        "number": rule.ref.number,
        "text": rule.text,
        "packets": rule.packets,
        "bytes": rule.bytes,
        "kernel": {"packets": rule.kernel[0], "bytes": rule.kernel[1]},
        "decided": {"packets": rule.decided[0], "bytes": rule.decided[1]},
        "possible": rule.possible,
    }
