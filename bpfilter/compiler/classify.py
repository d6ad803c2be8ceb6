"""Pass 1: decide for every rule in a built-in chain's reach how it is treated, and why.

Guarantee: a rule is inlined only if all it does is decided by its static matches. Everything else
becomes an item of a residual, or a punt where a copy of the rule would not behave as the one
original (state that lives in one rule instance).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bpfilter.compiler.guards import RAW_STATES, GuardBuilder
from bpfilter.compiler.ir import Action, Guard, Item, ItemKind, Space, Treatment
from bpfilter.compiler.layout import MAX_ENTRIES
from bpfilter.compiler.logonly import LOGGING, ChainTraits, chain_traits, effect_of
from bpfilter.compiler.nat import nat_treatments
from bpfilter.compiler.scope import (
    ABSENT_INTERFACE,
    TRANSLATING,
    altered_fields,
    closure,
    space_of,
    unresolved,
)
from bpfilter.ruleset.fields import ALL_STATES, Field
from bpfilter.ruleset.model import (
    Chain,
    Match,
    Rule,
    RuleRef,
    Ruleset,
    StateEffect,
    Target,
    TargetKind,
)
from bpfilter.ruleset.targets import EXTENSIONS


@dataclass(frozen=True, slots=True)
class Classified:
    """The treatments of all rules in reach of one built-in chain."""

    table: str
    chain: str
    policy: str
    space: Space
    treatments: Mapping[RuleRef, Treatment]


def classify(ruleset: Ruleset, table: str, chain: str, space: Space | None = None) -> Classified:
    """Treat every rule that packets of a built-in chain may meet.

    Also treats the rules of the nat chain before it (see `nat_treatments`). `space`: one that is
    common to several chains, instead of the chain's own. Raises CompileError for a chain that
    jumps back to itself.
    """
    translating = TRANSLATING[(table, chain)]
    if space is None:
        hooks = ((table, chain),) if translating is None else ((table, chain), translating)
        space = space_of(ruleset, hooks)
    chains = closure(ruleset.tables[table], chain)
    builder = GuardBuilder(
        space, ABSENT_INTERFACE.get(chain), RAW_STATES if table == "raw" else ALL_STATES
    )
    classifier = _Classifier(ruleset, table, chain, chains, space, builder)
    treatments = dict(classifier.run())
    if translating is not None:
        treatments |= nat_treatments(ruleset, *translating, space, ABSENT_INTERFACE.get(chain))
    policy = ruleset.tables[table].chains[chain].policy or "ACCEPT"
    return Classified(table, chain, policy, space, treatments)


class _Classifier:
    def __init__(
        self,
        ruleset: Ruleset,
        table: str,
        chain: str,
        chains: tuple[Chain, ...],
        space: Space,
        builder: GuardBuilder,
    ) -> None:
        self._policy = ruleset.tables[table].chains[chain].policy or "ACCEPT"
        self._chains = chains
        self._names = frozenset(chain.name for chain in chains)
        self._space = space
        self._builder = builder
        self._altered = altered_fields(ruleset, table, chain)
        if table == "raw" and _changes_tracking(chains):
            # Behind CT or NOTRACK the packet is UNTRACKED, or has a template's state.
            self._altered |= {Field.STATE}
        if chain == "OUTPUT":
            # Locally made packets get their type only when they are sent.
            self._altered |= {Field.PACKET_TYPE}
        self._traits: Mapping[str, ChainTraits] = {}
        self._dynamic: dict[int, bool] = {}

    def run(self) -> Mapping[RuleRef, Treatment]:
        self._traits = chain_traits(self._chains, self.dynamic_from)
        copied = _oversized(self._chains, self._traits)
        treatments = {
            rule.ref: self._treat(rule, chain, copied)
            for chain in self._chains
            for rule in chain.rules
        }
        return treatments | self._not_inlined(treatments)

    def _not_inlined(self, treatments: Mapping[RuleRef, Treatment]) -> dict[RuleRef, Treatment]:
        """Rules of chains that run only as a copy, or as the original after a punt."""
        inlined = {self._chains[0].name}
        by_copy: dict[str, str] = {}
        for chain in _call_order(self._chains):
            for rule in chain.rules:
                treatment = treatments[rule.ref]
                callee = rule.target.name
                if callee not in self._names or chain.name not in inlined | by_copy.keys():
                    continue
                if chain.name in inlined and treatment.action in (Action.JUMP, Action.GOTO):
                    inlined.add(callee)
                elif treatment.action is not Action.PUNT:
                    why = treatment.reason if chain.name in inlined else by_copy[chain.name]
                    by_copy[callee] = why
        result = {}
        for chain in self._chains:
            if chain.name in inlined:
                continue
            copy = chain.name in by_copy
            action = Action.ITEM if copy else Action.PUNT
            why = by_copy.get(chain.name, "only punted packets get into this chain")
            for rule in chain.rules:
                static = treatments[rule.ref].static_matches
                result[rule.ref] = Treatment(action, (), static, f"in a chain kept whole: {why}")
        return result

    def dynamic_from(self, rule: Rule) -> int:
        """How many leading matches are static."""
        for index, match in enumerate(rule.matches):
            if self._is_dynamic(match):
                return index
        return len(rule.matches)

    def _is_dynamic(self, match: Match) -> bool:
        # By identity: the reader gives equal matches as one object, and hashing terms costs.
        answer = self._dynamic.get(id(match))
        if answer is None:
            answer = self._dynamic[id(match)] = self._judge(match)
        return answer

    def _judge(self, match: Match) -> bool:
        if match.dynamic or unresolved(match, self._space):
            return True
        if not self._altered:
            return False
        return any(
            term.field in self._altered for terms in match.alternatives or () for term in terms
        )

    def _treat(self, rule: Rule, chain: Chain, copied: frozenset[str]) -> Treatment:
        static = self.dynamic_from(rule)
        guards = self._builder.guards(rule.matches[:static])
        rest = rule.matches[static:]
        if _tests_fragments(rule.matches[:static]) and not guards:
            return Treatment(Action.PUNT, (), static, "fragments always take the original rules")
        target = rule.target
        if target.kind in (TargetKind.JUMP, TargetKind.GOTO):
            return self._treat_jump(rule, chain, static, guards, copied)
        if rest:
            return self._treat_dynamic(rule, chain, static, guards)
        if target.kind is TargetKind.NONE:
            return Treatment(Action.CONTINUE, guards, static, "counts only")
        if target.kind is TargetKind.VERDICT:
            return Treatment(self._verdict(target.name, chain), guards, static)
        return self._treat_extension(rule, static, guards, f"target {target.name}")

    def _verdict(self, name: str, chain: Chain) -> Action:
        if name == "RETURN" and chain.policy is not None:
            name = self._policy
        return {"ACCEPT": Action.ACCEPT, "DROP": Action.DROP}.get(name, Action.RETURN)

    def _treat_extension(
        self, rule: Rule, static: int, guards: tuple[Guard, ...], reason: str
    ) -> Treatment:
        target = rule.target
        effect = _effect(rule, static)
        if target.name not in EXTENSIONS and target.kind is TargetKind.EXTENSION:
            return Treatment(Action.PUNT, guards, static, _unknown(target))
        if effect is StateEffect.INSTANCE:
            if self._log_only_rule(rule):
                item = Item(rule.ref, ItemKind.SHARED, False, frozenset(), reason)
                return Treatment(Action.ITEM, guards, static, reason, item=item)
            return Treatment(Action.PUNT, guards, static, f"{reason}: state of this one rule")
        terminal = target.terminal and static == len(rule.matches)
        item = Item(rule.ref, ItemKind.RULE, terminal, target.verdicts, reason)
        return Treatment(Action.ITEM, guards, static, reason, item=item)

    def _treat_dynamic(
        self, rule: Rule, chain: Chain, static: int, guards: tuple[Guard, ...]
    ) -> Treatment:
        reason = f"match {rule.matches[static].name}"
        target = rule.target
        if target.kind is not TargetKind.VERDICT:
            return self._treat_extension(rule, static, guards, reason)
        if _effect(rule, static) is StateEffect.INSTANCE:
            return Treatment(Action.PUNT, guards, static, f"{reason}: state of this one rule")
        verdict = target.name
        if verdict == "RETURN" and chain.policy is not None:
            verdict = self._policy
        # A dynamic RETURN of a user chain never gets here inlined: its chain is copied whole.
        verdicts = frozenset({verdict} - {"RETURN"})
        item = Item(rule.ref, ItemKind.RULE, False, verdicts, reason)
        return Treatment(Action.ITEM, guards, static, reason, item=item)

    def _treat_jump(
        self,
        rule: Rule,
        chain: Chain,
        static: int,
        guards: tuple[Guard, ...],
        copied: frozenset[str],
    ) -> Treatment:
        name = rule.target.name
        goto = rule.target.kind is TargetKind.GOTO
        traits = self._traits[name]
        dynamic = static < len(rule.matches)
        if traits.inert and not goto and not dynamic:
            reason = f"chain {name} does nothing"
            return Treatment(Action.CONTINUE, guards, static, reason)
        whole = traits.copied or name in copied
        if not dynamic and not whole:
            action = Action.GOTO if goto else Action.JUMP
            return Treatment(action, guards, static, target=name)
        if dynamic:
            reason = f"match {rule.matches[static].name}"
        else:
            reason = traits.reason or f"chain {name} is too large to inline"
        if _effect(rule, static) is StateEffect.INSTANCE:
            if not traits.log_only or goto:
                return Treatment(Action.PUNT, guards, static, f"{reason}: state of this one rule")
            item = Item(rule.ref, ItemKind.SHARED, False, frozenset(), reason, chain=name)
            return Treatment(Action.ITEM, guards, static, reason, item=item)
        if traits.instance and not traits.log_only:
            why = f"{reason}; chain {name} has {traits.instance}, state of one rule"
            return Treatment(Action.PUNT, guards, static, why)
        policy = self._policy if goto and chain.policy is not None else None
        verdicts = traits.verdicts | ({policy} if policy else frozenset())
        terminal = not dynamic and (policy is not None or traits.terminal)
        item = Item(rule.ref, ItemKind.COPY, terminal, verdicts, reason, name, policy)
        return Treatment(Action.ITEM, guards, static, reason, item=item)

    def _log_only_rule(self, rule: Rule) -> bool:
        return rule.target.kind is TargetKind.NONE or rule.target.name in LOGGING


def _unknown(target: Target) -> str:
    """Why a rule is punted whose target is neither a declared chain nor an extension we know."""
    if target.words[0] == "-g":
        return f"goto to chain {target.name}, which its table does not declare"
    return f"{target.name} is neither a chain that its table declares nor a target bpfilter knows"


def _effect(rule: Rule, static: int) -> StateEffect:
    """The strongest state that evaluating the dynamic part of a rule leaves behind."""
    return max(effect_of(rule.matches[static:]), rule.target.effect)


def _tests_fragments(matches: tuple[Match, ...]) -> bool:
    return any(
        term.field is Field.FRAGMENT
        for match in matches
        for terms in match.alternatives or ()
        for term in terms
    )


def _changes_tracking(chains: tuple[Chain, ...]) -> bool:
    return any(rule.target.name in ("CT", "NOTRACK") for chain in chains for rule in chain.rules)


def _oversized(chains: tuple[Chain, ...], traits: Mapping[str, ChainTraits]) -> frozenset[str]:
    """Chains to copy instead of inlining, so that the flattened list stays within its cap.

    The largest chain in total (entries times places it is inlined at) goes first.
    """
    by_name = {chain.name: chain for chain in chains}
    copied: set[str] = set()
    while True:
        uses = _uses(chains[0].name, by_name, traits, copied)
        totals = {name: count * len(by_name[name].rules) for name, count in uses.items()}
        if sum(totals.values()) + 1 < MAX_ENTRIES // 2:
            return frozenset(copied)
        candidates = {name: n for name, n in totals.items() if name != chains[0].name}
        if not candidates:
            return frozenset(copied)
        copied.add(max(candidates, key=candidates.__getitem__))


def _uses(
    root: str,
    chains: Mapping[str, Chain],
    traits: Mapping[str, ChainTraits],
    copied: set[str],
) -> dict[str, int]:
    """How often each chain is inlined, counting from the root; `chains` is in call order."""
    uses = {root: 1}
    for name in _topological(root, chains):
        for rule in chains[name].rules:
            callee = rule.target.name
            inlined = callee in chains and callee not in copied and not traits[callee].copied
            if rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO) and inlined:
                uses[callee] = uses.get(callee, 0) + uses.get(name, 0)
    return {name: count for name, count in uses.items() if count}


def _call_order(chains: tuple[Chain, ...]) -> list[Chain]:
    """The chains, callers before callees; the first is the root."""
    by_name = {chain.name: chain for chain in chains}
    return [by_name[name] for name in _topological(chains[0].name, by_name)]


def _topological(root: str, chains: Mapping[str, Chain]) -> list[str]:
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in chains:
            return
        seen.add(name)
        for rule in chains[name].rules:
            if rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO):
                visit(rule.target.name)
        order.append(name)

    visit(root)
    return order[::-1]
