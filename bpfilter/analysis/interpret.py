"""What the rules mean, packet by packet: the definition that proofs and tests are held against.

Plain iptables semantics (ip_tables.c, `ipt_do_table`): rules in order, jumps with a return stack,
RETURN and the end of a user chain go back to the caller, the built-in chain ends in its policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from bpfilter.analysis.conditions import NAT_STATES, Hook, Scene, nat_before, static_part
from bpfilter.compiler.ir import Action, Item, Space, Treatment, Verdict
from bpfilter.ruleset.fields import STATES, Field
from bpfilter.ruleset.model import Chain, RuleRef, Ruleset

VERDICTS = {
    Action.ACCEPT: Verdict.ACCEPT,
    Action.DROP: Verdict.DROP,
    Action.PUNT: Verdict.PUNT,
}
"""The actions that end a walk."""


@dataclass(frozen=True, slots=True)
class Path:
    """How one packet goes through a built-in chain in one connection state.

    `matched`: the rules whose static part matched, in order, jumps included; the policy has
    number 0. `items` and `verdict` are the outcome as `ir.Walk` has it: PUNT has no items, and
    the verdict is None behind a terminal item. `rule` decided, or is the last of `matched`.
    `consulted`: every rule that was looked at, in order, whether it matched or not.
    """

    matched: tuple[RuleRef, ...]
    items: tuple[Item, ...]
    verdict: Verdict | None
    consulted: tuple[RuleRef, ...] = ()

    @property
    def rule(self) -> RuleRef:
        return self.matched[-1]

    @property
    def trace(self) -> tuple[tuple[Item, ...], Verdict | None]:
        return self.items, self.verdict


def interpret(
    ruleset: Ruleset,
    treatments: Mapping[RuleRef, Treatment],
    hook: Hook,
    space: Space,
    packet: Mapping[Field, int],
    state: int,
) -> Path:
    """The path of a packet in a connection state (one bit of `State`).

    Interfaces in the packet are indices of `space.interfaces`; fields that are absent are 0.
    MASKS is not read: masks are evaluated on the addresses.
    """
    run = _Run(ruleset, treatments, Scene.of(hook, space), packet, state)
    return run.path()


def rule_holds(
    ruleset: Ruleset,
    treatment: Treatment,
    ref: RuleRef,
    scene: Scene,
    packet: Mapping[Field, int],
    state: int,
) -> bool:
    """Whether the static part of a rule matches (a nat rule: may match in some state)."""
    rule = ruleset.rule(ref)
    if rule.table == "nat" and not state & NAT_STATES:
        return False
    states = STATES if rule.table == "nat" else (state,)
    parts = static_part(rule, treatment, scene.space)
    return any(
        all(
            any(all(scene.holds(term, packet, bit) for term in terms) for terms in alternatives)
            for alternatives in parts
        )
        for bit in states
    )


class _End(Enum):
    """How the rules of a chain let go of a packet."""

    RETURNED = 1
    DECIDED = 2
    LEFT_NAT = 3


@dataclass(slots=True)
class _Run:
    ruleset: Ruleset
    treatments: Mapping[RuleRef, Treatment]
    scene: Scene
    packet: Mapping[Field, int]
    state: int
    matched: list[RuleRef] = field(default_factory=list)
    consulted: list[RuleRef] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    verdict: Verdict | None = None

    def path(self) -> Path:
        hook = self.scene.hook
        nat = nat_before(self.ruleset, hook, self.treatments)
        if nat is None or self.chain(nat[0], nat[1]) is not _End.DECIDED:
            self.matched.clear()
            self.consulted.clear()
            if self.chain(*hook) is _End.RETURNED:
                policy = self.ruleset.tables[hook[0]].chains[hook[1]].policy
                self.verdict = Verdict.DROP if policy == "DROP" else Verdict.ACCEPT
                self.matched.append(RuleRef(*hook, 0))
        items = () if self.verdict is Verdict.PUNT else tuple(self.items)
        return Path(tuple(self.matched), items, self.verdict, tuple(self.consulted))

    def chain(self, table: str, name: str) -> _End:
        chain = self.ruleset.tables[table].chains[name]
        for rule in chain.rules:
            treatment = self.treatments[rule.ref]
            self.consulted.append(rule.ref)
            if not rule_holds(
                self.ruleset, treatment, rule.ref, self.scene, self.packet, self.state
            ):
                continue
            self.matched.append(rule.ref)
            end = self.act(chain, table, treatment)
            if end is not None:
                return end
        return _End.RETURNED

    def act(self, chain: Chain, table: str, treatment: Treatment) -> _End | None:
        """Execute a matched rule; None goes on with the next one."""
        action = treatment.action
        if action is Action.CONTINUE:
            return None
        if action is Action.RETURN:
            return _End.RETURNED
        if action in (Action.JUMP, Action.GOTO):
            assert treatment.target is not None
            end = self.chain(table, treatment.target)
            return end if end is not _End.RETURNED or action is Action.GOTO else None
        if action is Action.ITEM:
            assert treatment.item is not None
            self.items.append(treatment.item)
            return _End.DECIDED if treatment.item.terminal else None
        if action is Action.ACCEPT and table == "nat":
            return _End.LEFT_NAT
        self.verdict = VERDICTS[action]
        return _End.DECIDED
