"""Unreachable rules found without decision diagrams: sound, far from complete.

The fallback where no complete proof exists: a rule is unreachable here only if an earlier rule of
its chain takes every packet, or if every jump to its chain is itself unreachable.
"""

from __future__ import annotations

from collections.abc import Mapping

from bpfilter.analysis.conditions import Hook
from bpfilter.ruleset.model import Chain, Rule, RuleRef, Ruleset, TargetKind


def certainly_unreachable(ruleset: Ruleset, hook: Hook) -> Mapping[RuleRef, tuple[RuleRef, ...]]:
    """Rules in reach of a built-in chain that no packet gets to, and the rule in the way."""
    chains = ruleset.tables[hook[0]].chains
    entered: set[str] = set()
    _enter(chains, hook[1], entered)
    found: dict[RuleRef, tuple[RuleRef, ...]] = {}
    for name in _mentioned(chains, hook[1]):
        rules = chains[name].rules
        if name not in entered:
            found |= {rule.ref: () for rule in rules}
            continue
        end = _end(chains[name])
        if end is not None:
            found |= {rule.ref: (end.ref,) for rule in rules[end.number :]}
    return found


def _enter(chains: Mapping[str, Chain], name: str, entered: set[str]) -> None:
    entered.add(name)
    end = _end(chains[name])
    for rule in chains[name].rules[: None if end is None else end.number]:
        if _jumps(rule) and rule.target.name not in entered:
            _enter(chains, rule.target.name, entered)


def _mentioned(chains: Mapping[str, Chain], root: str) -> list[str]:
    found = [root]
    for name in found:
        for rule in chains[name].rules:
            if _jumps(rule) and rule.target.name not in found:
                found.append(rule.target.name)
    return found


def _end(chain: Chain) -> Rule | None:
    """The first rule that lets no packet pass to the next one."""
    return next((rule for rule in chain.rules if _takes_all(rule)), None)


def _takes_all(rule: Rule) -> bool:
    unmatched = all(match.alternatives == ((),) for match in rule.matches)
    ends = rule.target.kind in (TargetKind.VERDICT, TargetKind.GOTO) or rule.target.terminal
    return unmatched and ends


def _jumps(rule: Rule) -> bool:
    return rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
