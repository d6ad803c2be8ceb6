"""One fate for every rule: who decides the packets that it matches, and why.

A rule of a user chain may be met from several built-in chains, its *contexts*. Its fate is the
first that applies of kept, unreachable (in every context), punt, residual (in any), native.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bpfilter.analysis.conditions import Hook, Scene, static_part, terms_of
from bpfilter.analysis.equivalence import Proof
from bpfilter.analysis.unconditional import certainly_unreachable
from bpfilter.compiler.compile import CHAINS
from bpfilter.compiler.ir import Action, Treatment
from bpfilter.compiler.plan import ChainPlan, Plan
from bpfilter.ruleset.fields import Field
from bpfilter.ruleset.model import BUILTIN_CHAINS, Rule, RuleRef, Ruleset, TargetKind


class FateKind(StrEnum):
    NATIVE = "native"  # decided by the BPF program alone
    RESIDUAL = "residual"  # its dynamic part is executed by iptables, the rest by the program
    PUNT = "punt"  # packets that get to it run the original rules
    UNREACHABLE = "unreachable"  # no packet gets to it
    KEPT = "kept"  # in a table or chain that is not taken over


STATE = "state"
"""The reason of a rule that is dynamic by the connection state only."""


@dataclass(frozen=True, slots=True)
class ContextFate:
    """What becomes of a rule in one built-in chain."""

    kind: FateKind
    reason: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a rule. `reason`: for residual, `state`, or the match or target that makes
    it so. `contexts`: per built-in chain (table, chain) that is taken over and can meet the rule.
    `shadowed_by`: for unreachable, the rules that take all its packets; none if its own matches
    (with those of the jumps to its chain) exclude each other.
    """

    kind: FateKind
    reason: str
    contexts: Mapping[Hook, ContextFate] = field(default_factory=dict)
    shadowed_by: tuple[RuleRef, ...] = ()


def fates(plan: Plan, proofs: Mapping[Hook, Proof]) -> Mapping[RuleRef, Fate]:
    """The fate of every rule of the plan's ruleset, in its order.

    Where a chain's proof is missing or incomplete, rules count as unreachable only if that shows
    without it.
    """
    ruleset = plan.ruleset
    missed = {hook: _missed(ruleset, hook, proofs.get(hook)) for hook in plan.chains}
    callers = _callers(ruleset)
    return {
        rule.ref: _fate(rule, plan, missed, callers.get((rule.table, rule.chain), frozenset()))
        for rule in ruleset.rules()
    }


def _missed(
    ruleset: Ruleset, hook: Hook, proof: Proof | None
) -> Mapping[RuleRef, tuple[RuleRef, ...]]:
    plain = certainly_unreachable(ruleset, hook)
    return plain if proof is None else {**plain, **proof.unreachable}


def _callers(ruleset: Ruleset) -> Mapping[Hook, frozenset[str]]:
    """For every chain the built-in chains of its table from which jumps lead to it."""
    found: dict[Hook, set[str]] = {}
    for name, table in ruleset.tables.items():
        for builtin in BUILTIN_CHAINS.get(name, ()):
            waiting = [builtin] if builtin in table.chains else []
            while waiting:
                chain = waiting.pop()
                reached = found.setdefault((name, chain), set())
                if builtin in reached:
                    continue
                reached.add(builtin)
                waiting += [
                    rule.target.name
                    for rule in table.chains[chain].rules
                    if rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
                ]
    return {chain: frozenset(builtins) for chain, builtins in found.items()}


def _fate(
    rule: Rule,
    plan: Plan,
    missed: Mapping[Hook, Mapping[RuleRef, tuple[RuleRef, ...]]],
    builtins: frozenset[str],
) -> Fate:
    if rule.table not in {table for table, _ in CHAINS}:
        return Fate(FateKind.KEPT, f"table {rule.table} stays with iptables")
    hooks = [(rule.table, builtin) for builtin in sorted(builtins)]
    taken = [hook for hook in hooks if hook in plan.chains]
    if not builtins:
        return Fate(FateKind.UNREACHABLE, f"nothing jumps to chain {rule.chain}")
    if not taken:
        names = " and ".join(f"{table} {chain}" for table, chain in hooks)
        return Fate(FateKind.KEPT, f"{names} stays with iptables")
    contexts = {hook: _context(rule, plan, hook, missed[hook]) for hook in taken}
    return _first(rule, contexts, hooks, missed)


def _first(
    rule: Rule,
    contexts: Mapping[Hook, ContextFate],
    hooks: list[Hook],
    missed: Mapping[Hook, Mapping[RuleRef, tuple[RuleRef, ...]]],
) -> Fate:
    live = [fate for fate in contexts.values() if fate.kind is not FateKind.UNREACHABLE]
    if not live:
        elsewhere = [hook for hook in hooks if hook not in contexts]
        if elsewhere:
            names = " and ".join(f"{table} {chain}" for table, chain in elsewhere)
            return Fate(FateKind.KEPT, f"only {names} may get to it", contexts)
        shadows = dict.fromkeys(ref for hook in contexts for ref in missed[hook][rule.ref])
        reason = next(iter(contexts.values())).reason
        return Fate(FateKind.UNREACHABLE, reason, contexts, tuple(shadows))
    for kind in (FateKind.PUNT, FateKind.RESIDUAL, FateKind.NATIVE):
        chosen = [fate for fate in live if fate.kind is kind]
        if chosen:
            # A dynamic match says more than the connection state does.
            worst = next((fate for fate in chosen if fate.reason != STATE), chosen[0])
            return Fate(kind, worst.reason, contexts)
    raise AssertionError("every context has a fate")


def _context(
    rule: Rule, plan: Plan, hook: Hook, missed: Mapping[RuleRef, tuple[RuleRef, ...]]
) -> ContextFate:
    if rule.ref in missed:
        shadows = missed[rule.ref]
        reason = f"shadowed by {_list(shadows)}" if shadows else _CONTRADICTION
        return ContextFate(FateKind.UNREACHABLE, reason)
    chain = plan.chains[hook]
    treatment = chain.treatments[rule.ref]
    if treatment.action is Action.PUNT:
        return ContextFate(FateKind.PUNT, treatment.reason)
    if treatment.action is Action.ITEM:
        return ContextFate(FateKind.RESIDUAL, treatment.reason)
    if tests_state(rule, treatment, chain):
        return ContextFate(FateKind.RESIDUAL, STATE)
    return ContextFate(FateKind.NATIVE, treatment.reason or "all its matches are static")


def tests_state(rule: Rule, treatment: Treatment, chain: ChainPlan) -> bool:
    """Whether a rule's static part depends on the connection state in this chain."""
    scene = Scene.of((chain.table, chain.chain), chain.flat.space)
    terms = terms_of(static_part(rule, treatment, scene.space))
    return any(term.field is Field.STATE and scene.constant(term) is None for term in terms)


def _list(refs: tuple[RuleRef, ...]) -> str:
    shown = ", ".join(str(ref) for ref in refs[:_SHOWN])
    more = len(refs) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


_SHOWN = 4
_CONTRADICTION = "its matches, or those of the jumps to its chain, exclude each other"
