"""The dispatch: iptables chains that execute what the program decided, as iptables-restore text.

Guarantees: a packet that carries code c of this chain meets exactly the walk that c's function
names for its connection state, executed by the original rules' own words; every other packet, and
every state whose walk is PUNT, goes on to the complete original chain; the mark field is zero
before any original rule sees the packet; nothing here jumps into a chain that is not ours.
Grammar: iptables-restore(8), iptables-extensions(8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bpfilter.compiler.ir import Function, Item, ItemKind, Verdict, Walk
from bpfilter.compiler.mark import MarkField
from bpfilter.compiler.plan import ChainPlan, Code
from bpfilter.errors import RolloutError
from bpfilter.rollout import ours
from bpfilter.rollout.ours import ENTRY_PREFIX, chain_name
from bpfilter.ruleset.fields import Family, State
from bpfilter.ruleset.lexer import quote
from bpfilter.ruleset.model import Rule, Ruleset, TargetKind

INGRESS_CHAINS = ("INPUT", "FORWARD")
EXPRESS_INTERFACES = 4
"""Up to so many interfaces the most travelled code gets a jump of its own, which saves a chain."""

LINEAR_CODES = 8
"""Up to so many codes are matched one after the other; more are matched by upper nibble first."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Our part of one family's `filter` table.

    `chains`: name → rules without `-A NAME`, callees before callers. `jumps`: (built-in chain,
    rule) in the order in which they stand at the top of that chain.
    """

    family: Family
    chains: Mapping[str, tuple[str, ...]]
    jumps: tuple[tuple[str, str], ...]

    @property
    def add(self) -> str:
        """Text for `iptables-restore --noflush` on a table that has nothing of ours."""
        return ours.edit("", self.chains, self.jumps)

    @property
    def remove(self) -> str:
        """Text for `iptables-restore --noflush` that undoes `add`."""
        lines = [
            *(f"-D {chain} {rule}" for chain, rule in self.jumps),
            *(f":{name} - [0:0]" for name in self.chains),
            *(f"-X {name}" for name in self.chains),
        ]
        return "\n".join(["*filter", *lines, "COMMIT", ""])


def render(
    ruleset: Ruleset,
    chain_plan: ChainPlan,
    codes: Sequence[Code],
    mark: MarkField,
    interfaces: Sequence[str],
    *,
    translated: bool | None = None,
) -> Dispatch:
    """The dispatch of one built-in chain; codes of other chains and families are ignored.

    `translated`: whether NAT may have changed addresses since the program saw the packet (None:
    if a nat rule rewrites addresses); packets of translated connections then take the original
    chain.

    The other ingress chain gets an entry that clears the field only: a packet that was marked for
    INPUT and is forwarded after all (a masqueraded reply) must not carry the code on. RolloutError
    if a code does not fit the mark field.
    """
    if chain_plan.table != "filter" or chain_plan.chain not in INGRESS_CHAINS:
        raise RolloutError(
            f"no dispatch exists for {chain_plan.table}/{chain_plan.chain}",
            hint="only filter INPUT and FORWARD can be taken over",
        )
    here = (ruleset.family, chain_plan.table, chain_plan.chain)
    travelled = {function: rank for rank, function in enumerate(chain_plan.functions)}
    mine = sorted(
        (code for code in codes if (code.family, code.table, code.chain) == here),
        key=lambda code: travelled.get(code.function, len(travelled)),
    )
    for code in mine:
        if not 0 < code.number <= mark.max_code:
            raise RolloutError(
                f"code {code.number} does not fit the mark field {mark.mask:#010x}",
                hint="free more mark bits, or plan fewer chains at a time",
            )
    builder = _Builder(ruleset, chain_plan, mark)
    if translated is None:
        nat = ruleset.tables.get("nat")
        # Asking conntrack where nothing else does would set it to work, and reassemble fragments.
        translated = nat is not None and any(
            rule.target.alters & {"address", "all"}
            for chain in nat.chains.values()
            for rule in chain.rules
        )
    builder.entry(mine, translated)
    for chain in INGRESS_CHAINS:
        if chain != chain_plan.chain:
            builder.chains[ENTRY_PREFIX + chain] = (builder.clear,)
    express = () if translated or len(interfaces) > EXPRESS_INTERFACES else builder.express(mine)
    jumps = [
        *((chain_plan.chain, f"-i {quote(name)} {match}") for match in express
          for name in interfaces),
        *_jumps(mark, interfaces),
    ]  # fmt: skip
    return Dispatch(ruleset.family, builder.chains, tuple(jumps))


def _jumps(mark: MarkField, interfaces: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (chain, f"-i {quote(name)} -m mark ! --mark 0x0/{mark.mask:#x} -j {ENTRY_PREFIX}{chain}")
        for chain in INGRESS_CHAINS
        for name in interfaces
    )


def merge(dispatches: Sequence[Dispatch]) -> Dispatch:
    """Dispatches of several chains of one family, rendered for the same interfaces, as one edit."""
    families = {dispatch.family for dispatch in dispatches}
    if len(families) != 1:
        raise ValueError("dispatches of one family are needed")
    chains: dict[str, tuple[str, ...]] = {}
    for dispatch in dispatches:
        for name, rules in dispatch.chains.items():
            if len(rules) >= len(chains.get(name, ())):
                chains.pop(name, None)
                chains[name] = rules
    jumps = dict.fromkeys(jump for dispatch in dispatches for jump in dispatch.jumps)
    entries_last = sorted(jumps, key=lambda jump: jump[1].endswith(f" {ENTRY_PREFIX}{jump[0]}"))
    return Dispatch(families.pop(), chains, tuple(entries_last))


class _Builder:
    """Collects the chains of one dispatch; equal contents share one chain."""

    def __init__(self, ruleset: Ruleset, plan: ChainPlan, mark: MarkField) -> None:
        self.user_chains = ruleset.tables[plan.table].chains
        self.policy = self.user_chains[plan.chain].policy or "ACCEPT"
        self.ruleset = ruleset
        self.plan = plan
        self.mark = mark
        self.clear = f"-j MARK --set-xmark 0x0/{mark.mask:#x}"
        self.chains: dict[str, tuple[str, ...]] = {}
        self.copies: dict[str, str] = {}

    def add(self, kind: str, rules: Sequence[str], identity: str = "") -> str:
        name = chain_name(kind, rules, identity)
        self.chains.setdefault(name, tuple(rules))
        return name

    def entry(self, codes: Sequence[Code], translated: bool) -> None:
        rules = [(code.number, self.code_rule(code)) for code in codes]
        linear = len(rules) <= LINEAR_CODES
        lines = [rule for _, rule in rules] if linear else self.two_levels(rules)
        if translated and lines:
            # Before filter, nf_nat_packet rewrites the destination alone: of original packets if
            # the connection has a DNAT, of replies if it has an SNAT (net/netfilter/nf_nat_core.c).
            untouched = self.add("X", [self.clear])
            lines[:0] = [
                f"-m conntrack --ctstate DNAT --ctdir ORIGINAL -g {untouched}",
                f"-m conntrack --ctstate SNAT --ctdir REPLY -g {untouched}",
            ]
        self.chains[ENTRY_PREFIX + self.plan.chain] = (*lines, self.clear)

    def express(self, codes: Sequence[Code]) -> tuple[str, ...]:
        """The jump for the code that most packets carry; dropped ones meet no further chain anyhow.

        A jump, not a goto: what a function leaves to the original chain would end in the policy.
        """
        rules = [self.code_rule(code) for code in codes[:1]]
        return tuple(rule.replace(" -g ", " -j ") for rule in rules if " -g " in rule)

    def two_levels(self, rules: Sequence[tuple[int, str]]) -> list[str]:
        nibbles: dict[int, list[str]] = {}
        for number, rule in rules:
            nibbles.setdefault(number >> 4, []).append(rule)
        nibble_mask = self.mark.mask & ~self.mark.value(15)
        lines = []
        for nibble, members in nibbles.items():
            chain = self.add("N", [*members, self.clear])
            value = nibble << 4 << self.mark.shift
            lines.append(f"-m mark --mark {value:#x}/{nibble_mask:#x} -g {chain}")
        return lines

    def code_rule(self, code: Code) -> str:
        match = f"-m mark --mark {self.mark.value(code.number):#x}/{self.mark.mask:#x}"
        if code.function.uniform == Walk((), Verdict.DROP):
            return f"{match} -j DROP"
        return f"{match} -g {self.add('F', [self.clear, *self.function(code.function)])}"

    def function(self, function: Function) -> list[str]:
        uniform = function.uniform
        if uniform is not None:
            return self.walk(uniform)
        groups: dict[Walk, int] = {}
        for mask, walk in function.walks:
            groups[walk] = groups.get(walk, 0) | mask
        punts = [walk for walk in groups if walk.verdict is Verdict.PUNT]
        for walk in punts:
            del groups[walk]
        ordered = sorted(groups.items(), key=lambda group: _rank(group[1]))
        unconditional = None if punts else ordered.pop()
        lines = [self.confirmed(mask, walk) for walk, mask in ordered]
        return lines if unconditional is None else [*lines, *self.walk(unconditional[0])]

    def confirmed(self, states: int, walk: Walk) -> str:
        names = ",".join(state.name or "" for state in State if state & states)
        match = f"-m conntrack --ctstate {names}"
        lines = self.walk(walk)
        if not walk.items:
            return f"{match} {lines[0]}"
        return f"{match} -g {self.add('W', lines)}"

    def walk(self, walk: Walk) -> list[str]:
        if walk.verdict is Verdict.PUNT:
            return []
        lines = [self.item(self.plan.flat.items[index]) for index in walk.items]
        return lines if walk.verdict is None else [*lines, f"-j {walk.verdict}"]

    def item(self, item: Item) -> str:
        rule = self.ruleset.rule(item.rule)
        line = self.rule(rule, item.goto_policy)
        return (
            f"-j {self.add('S', [line], str(item.rule))}" if item.kind is ItemKind.SHARED else line
        )

    def rule(self, rule: Rule, goto_policy: str | None = None) -> str:
        """The rule's words, with jumps led to our copies and built-in RETURNs to the policy."""
        target = rule.target
        if target.kind in (TargetKind.JUMP, TargetKind.GOTO):
            copy = self.copy(target.name)
            if goto_policy is not None:
                copy = self.add("G", [f"-j {copy}", f"-j {goto_policy}"])
            words: Sequence[str] = ("-j" if target.kind is TargetKind.JUMP else "-g", copy)
        elif target.name == "RETURN" and rule.chain == self.plan.chain:
            words = ("-j", self.policy)
        else:
            words = target.words
        matches = [word for match in rule.matches for word in match.words]
        return " ".join(quote(word) for word in (*matches, *words))

    def copy(self, chain: str) -> str:
        if chain not in self.copies:
            lines = [self.rule(rule) for rule in self.user_chains[chain].rules]
            self.copies[chain] = self.add("C", lines, chain)
        return self.copies[chain]


def _rank(states: int) -> tuple[bool, bool, int]:
    """Established packets are confirmed first: they are most of the traffic."""
    return (not states & State.ESTABLISHED, not states & State.NEW, states)
