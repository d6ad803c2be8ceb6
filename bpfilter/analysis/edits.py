"""Which rules two rulesets do not share: the textual side of a semantic diff.

Rules are compared by their words. Within a chain, rules that keep their order are the same rules;
of the others, those whose words stand in both are moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from bpfilter.ruleset.model import Chain, Rule, Table
from bpfilter.ruleset.writer import rule_words


@dataclass(frozen=True, slots=True)
class Edits:
    """What must be done to one table's chains to get the other's. `moved` are the new places.

    `policies`: built-in chains whose policy differs.
    """

    added: tuple[Rule, ...]
    removed: tuple[Rule, ...]
    moved: tuple[Rule, ...]
    policies: tuple[str, ...]

    @property
    def touched(self) -> tuple[Rule, ...]:
        """Rules of either side whose packets may be treated differently."""
        return (*self.added, *self.removed, *self.moved)


def edits(old: Table, new: Table, chains: Iterable[str]) -> Edits:
    """Compare the named chains of a table; a chain that one side lacks is empty there."""
    added: list[Rule] = []
    removed: list[Rule] = []
    policies = []
    for name in chains:
        left, right = old.chains.get(name), new.chains.get(name)
        gone, come = _changed(_rules(left), _rules(right))
        removed += gone
        added += come
        if left is not None and right is not None and left.policy != right.policy:
            policies.append(name)
    pool = Counter((rule.chain, rule_words(rule)) for rule in removed)
    moved = []
    for rule in added:
        key = (rule.chain, rule_words(rule))
        if pool[key]:
            pool[key] -= 1
            moved.append(rule)
    kept = Counter((rule.chain, rule_words(rule)) for rule in moved)
    return Edits(
        tuple(rule for rule in added if rule not in moved),
        tuple(_without(removed, kept)),
        tuple(moved),
        tuple(policies),
    )


def _without(removed: Sequence[Rule], moved: Counter[tuple[str, str]]) -> Iterable[Rule]:
    for rule in removed:
        key = (rule.chain, rule_words(rule))
        if moved[key]:
            moved[key] -= 1
        else:
            yield rule


def _rules(chain: Chain | None) -> Sequence[Rule]:
    return () if chain is None else chain.rules


def _changed(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[Sequence[Rule], Sequence[Rule]]:
    """Rules that only the old and only the new list has, order taken into account."""
    shorter, start, end = min(len(old), len(new)), 0, 0
    while start < shorter and _same(old[start], new[start]):
        start += 1
    while end < shorter - start and _same(old[-1 - end], new[-1 - end]):
        end += 1
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    left = [rule_words(rule) for rule in old]
    right = [rule_words(rule) for rule in new]
    gone: list[Rule] = []
    come: list[Rule] = []
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind != "equal":
            gone += old[a:b]
            come += new[c:d]
    return gone, come


def _same(old: Rule, new: Rule) -> bool:
    """Whether two rules have the same words; what was parsed once is the same object."""
    if old.matches is new.matches and old.target is new.target:
        return True
    return rule_words(old) == rule_words(new)
