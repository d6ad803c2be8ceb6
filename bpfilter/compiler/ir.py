"""The values that stand between the compiler's passes.

ruleset → classify → {RuleRef: Treatment} → flatten → FlatChain → tables → ChainTables
                                                    → residuals → Functions
All are immutable. A packet's *walk* through a FlatChain in one connection state is: search the
first entry at or after `position` whose box holds the packet and whose `states` hold the state;
ACCEPT, DROP and PUNT end the walk; SKIP sets the position to its argument; ITEM records the item
and, unless the item is terminal, goes on behind the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from bpfilter.ruleset.fields import Family, Field, Intervals, MaskedValue
from bpfilter.ruleset.model import RuleRef

Box = Mapping[Field, Intervals]
"""A conjunction: the packet's value of every named field lies in its set. Never STATE."""


class OpKind(IntEnum):
    """What an entry does; the numbers are those of the BPF program's tables."""

    ACCEPT = 1
    DROP = 2
    PUNT = 3
    SKIP = 4
    ITEM = 5


class Verdict(StrEnum):
    ACCEPT = "ACCEPT"
    DROP = "DROP"
    PUNT = "PUNT"


class Action(StrEnum):
    """How the compiler treats one rule in one hook's context."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"  # inline the chain `target`
    GOTO = "goto"
    CONTINUE = "continue"  # no verdict and no effect that anyone could see but its counter
    ITEM = "item"  # leave to the residual
    PUNT = "punt"  # packets that statically reach it run the original rules


class ItemKind(StrEnum):
    RULE = "rule"  # the original rule's words, verbatim
    SHARED = "shared"  # log-only with state of its own: one shared single-rule chain for all
    COPY = "copy"  # the rule verbatim, but jumping to our copy of its user chain


@dataclass(frozen=True, slots=True)
class Item:
    """A dynamic rule that a residual executes.

    `terminal`: the packet never goes on behind it. `verdicts`: the verdicts ("ACCEPT", "DROP") it
    may give. `chain`: the user chain that is copied for COPY, or that a SHARED rule jumps to.
    `goto_policy`: for a dynamic goto of a built-in chain, the policy that applies when the copied
    chain returns. `reason` names the match or target that makes the rule dynamic.
    """

    rule: RuleRef
    kind: ItemKind
    terminal: bool
    verdicts: frozenset[str]
    reason: str
    chain: str | None = None
    goto_policy: str | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """A box and the connection states (bits of `State`) in which it applies."""

    box: Box
    states: int


@dataclass(frozen=True, slots=True)
class Treatment:
    """The compiler's decision on one rule.

    `guards`: disjoint alternatives of the static part. `static_matches`: how many leading matches
    (header matches first, then as written) the guards express. `target`: the chain for JUMP, GOTO.
    """

    action: Action
    guards: tuple[Guard, ...]
    static_matches: int
    reason: str = ""
    target: str | None = None
    item: Item | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """What the numbers in boxes mean.

    `interfaces`: one representative name per class of interface names that the rules can tell
    apart; a value of IN_INTERFACE or OUT_INTERFACE is an index into it. Index 0 is "" and stands
    for every name that no pattern matches; a trailing `+` stands for "any other name with this
    prefix". `masks`: bit i of MASKS is the truth of `masks[i]`.
    """

    family: Family
    interfaces: tuple[str, ...] = ("",)
    masks: tuple[tuple[Field, MaskedValue], ...] = ()

    def interface_class(self, name: str) -> int:
        """The class of an actual interface name: exact, else longest prefix, else 0."""
        best = 0
        for index, text in enumerate(self.interfaces):
            if text == name and text:
                return index
            if (
                text.endswith("+")
                and name.startswith(text[:-1])
                and (best == 0 or len(text) > len(self.interfaces[best]))
            ):
                best = index
        return best


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the flattened first-match list.

    `argument`: SKIP: the position to go on at; ITEM: index into `FlatChain.items`; else 0.
    `rule`: the original rule (number 0: the policy). `via`: the jump rules passed to get here.
    """

    box: Box
    states: int
    kind: OpKind
    argument: int
    rule: RuleRef
    via: tuple[RuleRef, ...] = ()


@dataclass(frozen=True, slots=True)
class FlatChain:
    """A built-in chain as a resumable first-match list. The last entry holds every packet."""

    table: str
    chain: str
    space: Space
    entries: tuple[Entry, ...]
    items: tuple[Item, ...]

    @property
    def family(self) -> Family:
        return self.space.family

    def state_classes(self) -> tuple[int, ...]:
        """Masks of states that no entry tells apart, in the order of their lowest bit."""
        signatures: dict[tuple[int, ...], int] = {}
        masks = sorted({entry.states for entry in self.entries})
        for bit in (1, 2, 4, 8, 16):
            key = tuple(index for index, mask in enumerate(masks) if mask & bit)
            signatures[key] = signatures.get(key, 0) | bit
        return tuple(signatures.values())


@dataclass(frozen=True, slots=True)
class Walk:
    """Where a packet ends in one state: items passed, then a verdict.

    `verdict` is None when the last item is terminal. A walk that meets a PUNT entry is
    `Walk((), PUNT)`: the original rules then run from the start, so no item may run before.
    """

    items: tuple[int, ...]
    verdict: Verdict | None


PUNTED = Walk((), Verdict.PUNT)


@dataclass(frozen=True, slots=True)
class Function:
    """The residual as a function of the connection state: one walk per class of states."""

    walks: tuple[tuple[int, Walk], ...]
    """Pairs (mask of states, walk); the masks are the chain's state classes, in order."""

    @property
    def uniform(self) -> Walk | None:
        """The one walk of all states, if they agree."""
        first = self.walks[0][1]
        return first if all(walk == first for _, walk in self.walks) else None

    def by_state(self) -> dict[int, Walk]:
        """State bit → walk."""
        return {bit: walk for mask, walk in self.walks for bit in (1, 2, 4, 8, 16) if mask & bit}
