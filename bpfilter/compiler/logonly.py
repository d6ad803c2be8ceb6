"""Properties of user chains that decide whether they are inlined, copied or punted.

A chain is *log-only* if nothing in it, nor in what it jumps to, can end in a verdict or change
the packet: all it can do is write log lines. It is *inert* if it cannot even do that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bpfilter.ruleset.model import Chain, Match, Rule, StateEffect, TargetKind

LOGGING = frozenset({"LOG", "NFLOG", "ULOG"})
"""Targets whose only effect is a log line or message."""

StaticCount = Callable[[Rule], int]
"""How many leading matches of a rule are static."""


@dataclass(frozen=True, slots=True)
class ChainTraits:
    """What the rules of a chain and of all chains it jumps to can do together.

    `copied`: it must be copied whole, because of `reason`. `instance`: a match whose state lives
    in one rule and can change a verdict. `terminal`: a packet that enters never returns.
    """

    log_only: bool
    inert: bool
    copied: bool
    reason: str
    instance: str | None
    verdicts: frozenset[str]
    terminal: bool


def chain_traits(chains: tuple[Chain, ...], static: StaticCount) -> Mapping[str, ChainTraits]:
    """Traits of every chain; `chains` is closed under jumps and free of loops."""
    by_name = {chain.name: chain for chain in chains}
    done: dict[str, ChainTraits] = {}

    def traits(name: str) -> ChainTraits:
        if name not in done:
            rules = by_name[name].rules
            callees = {rule.target.name: traits(rule.target.name) for rule in rules if _jumps(rule)}
            done[name] = _traits(by_name[name], callees, static)
        return done[name]

    return {chain.name: traits(chain.name) for chain in chains}


def _traits(chain: Chain, callees: Mapping[str, ChainTraits], static: StaticCount) -> ChainTraits:
    log_only = all(_log_only(rule, callees) for rule in chain.rules)
    reason = "" if chain.policy is not None else _copy_reason(chain, callees, static, log_only)
    return ChainTraits(
        log_only=log_only,
        inert=log_only and all(_inert(rule, callees) for rule in chain.rules),
        copied=bool(reason),
        reason=reason,
        instance=_instance(chain, callees, static),
        verdicts=_verdicts(chain, callees),
        terminal=_terminal(chain, callees),
    )


def _jumps(rule: Rule) -> bool:
    return rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)


def _log_only(rule: Rule, callees: Mapping[str, ChainTraits]) -> bool:
    if _jumps(rule):
        return callees[rule.target.name].log_only
    return (
        rule.target.kind is TargetKind.NONE
        or rule.target.name == "RETURN"
        or rule.target.name in LOGGING
    )


def _inert(rule: Rule, callees: Mapping[str, ChainTraits]) -> bool:
    if any(match.effect is StateEffect.NAMED for match in rule.matches):
        return False
    if _jumps(rule):
        return callees[rule.target.name].inert
    return rule.target.name not in LOGGING


def effect_of(matches: tuple[Match, ...]) -> StateEffect:
    return max((match.effect for match in matches), default=StateEffect.NONE)


def _copy_reason(
    chain: Chain, callees: Mapping[str, ChainTraits], static: StaticCount, log_only: bool
) -> str:
    """Why a user chain cannot be inlined, or an empty string.

    A RETURN or goto that only iptables can decide would need the rest of the chain twice.
    """
    for rule in chain.rules:
        goto = rule.target.kind is TargetKind.GOTO
        rest = rule.matches[static(rule) :]
        if goto and not rest and callees[rule.target.name].copied:
            return f"chain {chain.name} goes to {rule.target.name}, which is copied whole"
        if not rest or not (goto or rule.target.name == "RETURN"):
            continue
        if effect_of(rest) is not StateEffect.INSTANCE or log_only:
            return f"match {rest[0].name} decides where chain {chain.name} returns"
    return ""


def _instance(chain: Chain, callees: Mapping[str, ChainTraits], static: StaticCount) -> str | None:
    for rule in chain.rules:
        if _jumps(rule) and callees[rule.target.name].instance:
            return callees[rule.target.name].instance
        logs = rule.target.name in LOGGING or rule.target.kind is TargetKind.NONE
        if _jumps(rule) and rule.target.kind is TargetKind.JUMP:
            logs = callees[rule.target.name].log_only
        rest = rule.matches[static(rule) :]
        if not logs:
            if rule.target.effect is StateEffect.INSTANCE:
                return f"target {rule.target.name}"
            for match in rest:
                if match.effect is StateEffect.INSTANCE:
                    return f"match {match.name}"
    return None


def _verdicts(chain: Chain, callees: Mapping[str, ChainTraits]) -> frozenset[str]:
    verdicts: set[str] = set()
    for rule in chain.rules:
        if _jumps(rule):
            verdicts |= callees[rule.target.name].verdicts
        elif rule.target.name in ("ACCEPT", "DROP"):
            verdicts.add(rule.target.name)
        else:
            verdicts |= rule.target.verdicts
    return frozenset(verdicts)


def _terminal(chain: Chain, callees: Mapping[str, ChainTraits]) -> bool:
    """Sound, not complete: an unmatched final rule that no RETURN or goto can pass by."""
    for rule in chain.rules:
        if rule.target.name == "RETURN" or rule.target.kind is TargetKind.GOTO:
            return False
        if any(match.name != "comment" for match in rule.matches):
            continue
        if rule.target.name in ("ACCEPT", "DROP") or rule.target.terminal:
            return True
        if rule.target.kind is TargetKind.JUMP and callees[rule.target.name].terminal:
            return True
    return False
