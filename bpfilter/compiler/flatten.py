"""Pass 2: user chains, RETURN, goto and policies become one resumable first-match list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bpfilter.compiler.classify import Classified
from bpfilter.compiler.guards import ALWAYS, narrow
from bpfilter.compiler.ir import (
    Action,
    Entry,
    FlatChain,
    Guard,
    Item,
    OpKind,
    Treatment,
)
from bpfilter.compiler.layout import MAX_ENTRIES
from bpfilter.compiler.scope import TRANSLATING
from bpfilter.errors import CompileError
from bpfilter.ruleset.model import Chain, Rule, RuleRef, Ruleset

_FINAL = {Action.ACCEPT: OpKind.ACCEPT, Action.DROP: OpKind.DROP, Action.PUNT: OpKind.PUNT}


@dataclass(slots=True)
class _Label:
    """A position that is known once everything before it is emitted."""

    position: int = -1


@dataclass(slots=True)
class _Draft:
    guard: Guard
    kind: OpKind
    argument: int | _Label
    rule: RuleRef
    via: tuple[RuleRef, ...]


@dataclass(slots=True)
class _Emitter:
    drafts: list[_Draft] = field(default_factory=list)
    items: dict[RuleRef, int] = field(default_factory=dict)
    item_list: list[Item] = field(default_factory=list)

    def emit(
        self,
        guard: Guard,
        kind: OpKind,
        rule: RuleRef,
        via: tuple[RuleRef, ...],
        argument: int | _Label = 0,
    ) -> None:
        if len(self.drafts) >= MAX_ENTRIES - 1:
            raise CompileError(
                f"the chain flattens to more than {MAX_ENTRIES} entries",
                hint="merge rules into sets or move them out of chains that are jumped to often",
            )
        self.drafts.append(_Draft(guard, kind, argument, rule, via))

    def item(self, item: Item) -> int:
        if item.rule not in self.items:
            self.items[item.rule] = len(self.item_list)
            self.item_list.append(item)
        return self.items[item.rule]


def flatten(ruleset: Ruleset, classified: Classified) -> FlatChain:
    """The built-in chain as a first-match list; equal inputs give equal lists."""
    emitter = _Emitter()
    translating = TRANSLATING[(classified.table, classified.chain)]
    if translating is not None:
        table = ruleset.tables.get(translating[0])
        if table is not None and translating[1] in table.chains:
            _Inliner(table.chains, classified, emitter).prelude(table.chains[translating[1]])
    chains = ruleset.tables[classified.table].chains
    policy = RuleRef(classified.table, classified.chain, 0)
    _Inliner(chains, classified, emitter).body(chains[classified.chain], ALWAYS, ())
    kind = OpKind.DROP if classified.policy == "DROP" else OpKind.ACCEPT
    emitter.emit(ALWAYS, kind, policy, ())
    return _flat(classified, emitter)


def flatten_path(
    ruleset: Ruleset, path: Sequence[Classified], policy: OpKind | None = None
) -> tuple[FlatChain, tuple[int, ...]]:
    """The built-in chains that a packet passes one after the other as one list.

    ACCEPT goes on with the next chain, and behind the last one ends the walk; nat chains are the
    predicate of `nat_treatments`. `policy` stands for the last chain's own. Also returns where
    each chain ends. All chains are classified in one space.
    """
    emitter = _Emitter()
    ends = []
    for classified in path:
        chains = ruleset.tables[classified.table].chains
        inliner = _Inliner(chains, classified, emitter)
        chain = chains[classified.chain]
        end = _Label()
        last = classified is path[-1] and policy is None
        inliner.body(chain, ALWAYS, (), accept=None if last else end)
        if last or classified.policy == "DROP":
            kind = OpKind.DROP if classified.policy == "DROP" else OpKind.ACCEPT
            emitter.emit(ALWAYS, kind, RuleRef(classified.table, classified.chain, 0), ())
        end.position = len(emitter.drafts)
        ends.append(end.position)
    if policy is not None:
        emitter.emit(ALWAYS, policy, RuleRef(path[-1].table, path[-1].chain, 0), ())
    return _flat(path[-1], emitter), tuple(ends)


def _flat(classified: Classified, emitter: _Emitter) -> FlatChain:
    entries = tuple(
        Entry(
            draft.guard.box,
            draft.guard.states,
            draft.kind,
            draft.argument.position if isinstance(draft.argument, _Label) else draft.argument,
            draft.rule,
            draft.via,
        )
        for draft in emitter.drafts
    )
    return FlatChain(
        classified.table, classified.chain, classified.space, entries, tuple(emitter.item_list)
    )


class _Inliner:
    """Emits the rules of one table's chains, each within the context of the jumps to it."""

    def __init__(
        self, chains: Mapping[str, Chain], classified: Classified, emitter: _Emitter
    ) -> None:
        self._chains = chains
        self._treatments = classified.treatments
        self._emitter = emitter

    def prelude(self, chain: Chain) -> None:
        """The nat predicate: its ACCEPT and its end go on with the filter chain."""
        end = _Label()
        self.body(chain, ALWAYS, (), accept=end)
        end.position = len(self._emitter.drafts)

    def body(
        self,
        chain: Chain,
        context: Guard,
        via: tuple[RuleRef, ...],
        accept: _Label | None = None,
    ) -> None:
        end = _Label()
        for rule in chain.rules:
            treatment = self._treatments[rule.ref]
            closed = False
            for alternative in treatment.guards:
                guard = narrow(context, alternative)
                if guard is None:
                    continue
                self._rule(rule, treatment, guard, via, end, accept)
                closed = closed or guard == context
            if closed and treatment.action in _CLOSING:
                break
        end.position = len(self._emitter.drafts)

    def _rule(
        self,
        rule: Rule,
        treatment: Treatment,
        guard: Guard,
        via: tuple[RuleRef, ...],
        end: _Label,
        accept: _Label | None,
    ) -> None:
        emitter = self._emitter
        action = treatment.action
        if action is Action.CONTINUE:
            return
        if action is Action.ACCEPT and accept is not None:
            emitter.emit(guard, OpKind.SKIP, rule.ref, via, accept)
        elif action in _FINAL:
            emitter.emit(guard, _FINAL[action], rule.ref, via)
        elif action is Action.RETURN:
            emitter.emit(guard, OpKind.SKIP, rule.ref, via, end)
        elif action is Action.ITEM:
            assert treatment.item is not None
            index = emitter.item(treatment.item)
            emitter.emit(guard, OpKind.ITEM, rule.ref, via, index)
        else:
            assert treatment.target is not None
            self.body(self._chains[treatment.target], guard, (*via, rule.ref), accept)
            if action is Action.GOTO:
                emitter.emit(guard, OpKind.SKIP, rule.ref, via, end)


_CLOSING = frozenset({Action.ACCEPT, Action.DROP, Action.PUNT, Action.RETURN, Action.GOTO})
"""Actions behind which nothing of the chain is reached by the packets they take."""
