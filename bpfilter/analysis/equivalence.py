"""Proves that the compiled tables of a chain say of every packet what its rules say.

Translation validation: the parsed rules and the loaded arrays are each composed into one decision
diagram over all packets and connection states, by code that shares nothing with the compiler. The
two must be the same diagram.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bpfilter.analysis.conditions import Hook, Scene, static_part, terms_of
from bpfilter.analysis.contents import Contents
from bpfilter.analysis.diagrams import (
    CACHE_ENTRY_BYTES,
    NODE_BYTES,
    Diagrams,
    LimitReached,
    MemoryExhausted,
    Packets,
)
from bpfilter.analysis.functions import functions_of, has_items, verdicts_met
from bpfilter.analysis.interpret import interpret
from bpfilter.analysis.kept import Proven, kept
from bpfilter.analysis.meaning import Conditions, Meaning
from bpfilter.analysis.outcomes import Outcomes, Trace
from bpfilter.analysis.reach import unreachable_rules
from bpfilter.analysis.segments import Cutting, Segment, differing
from bpfilter.collection import paused
from bpfilter.compiler.ir import Function
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.fields import ADDRESS_TYPES, Field
from bpfilter.ruleset.model import RuleRef, Ruleset

_OUTCOME_BITS = 16
_SMALL = 1 << 18
_NODES_PER_ENTRY = 384
_LARGE = 2000
"""Entries; in larger chains diagrams of the whole are tried, but for no longer than this:"""
_LISTING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A packet that rules and tables judge differently in a state (one bit of `State`).

    Fields that no rule uses are left out; interfaces are indices of `Space.interfaces`.
    """

    packet: Mapping[Field, int]
    state: int
    rules: Trace
    tables: Trace


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of proving one chain.

    `complete`: the comparison covers all packets and states. `covered`: what is compared, and what
    a bound has left out; rules that it names do the same as their entries to all that reaches them.
    `holds`: no difference was found. `listed`: `functions` are exactly the residual functions that
    packets can meet (else it is empty). `unreachable`: rules that no packet reaches through this
    chain in any state, with the rules that shadow each (none: its own matches, or those of the
    jumps to its chain, exclude each other); in chains of thousands of rules some may be missing.
    `parts`: those that were proven each by itself, in order, for a later proof to rest on.
    """

    complete: bool
    holds: bool
    counterexample: Counterexample | None
    listed: bool
    functions: tuple[Function, ...]
    unreachable: Mapping[RuleRef, tuple[RuleRef, ...]]
    seconds: float
    covered: str
    parts: tuple[Segment, ...] = ()


def prove(
    ruleset: Ruleset,
    chain: ChainPlan,
    *,
    seconds: float = 30.0,
    memory: int = 1 << 30,
    part: int = 24,
    before: Proven | None = None,
    shadowed: bool = True,
) -> Proof:
    """Compare one chain's rules with its tables for every packet and connection state.

    Bounded by wall time and by bytes of memory for the diagrams: past a bound the result is
    incomplete, never wrong. `part`: about how many table entries are compared at a time. `before`:
    what was proven before an edit; parts that it left as they were are not proven again.
    `shadowed`: look for unreachable rules.
    """
    start = time.monotonic()
    with paused():
        stand = () if before is None else kept(before, ruleset, chain)
    entries = len(chain.tables.ops)
    if entries > _LARGE:
        entries -= sum(part.stop - part.start for part in stand)
    most = memory * 3 // 4 // NODE_BYTES
    nodes = min(most, max(_SMALL, _NODES_PER_ENTRY * entries))
    while True:
        attempt = _Attempt(ruleset, chain, part, stand, shadowed)
        try:
            with paused():
                attempt.run(nodes, start + seconds)
            break
        except MemoryExhausted:
            if nodes >= most or attempt.may_stop:
                attempt.ended_by(f"memory ({memory >> 20} MiB)")
                break
            nodes = min(most, nodes * 16)
        except LimitReached as limit:
            attempt.ended_by(str(limit))
            break
    return replace(attempt.proof, seconds=time.monotonic() - start)


class _Attempt:
    """One run with a given capacity. `proof` is what is known so far."""

    def __init__(
        self,
        ruleset: Ruleset,
        chain: ChainPlan,
        part: int,
        stand: tuple[Segment, ...],
        shadowed: bool,
    ) -> None:
        self._ruleset = ruleset
        self._chain = chain
        self._part = part
        self._stand = stand
        self._shadowed = shadowed
        self._hook: Hook = (chain.table, chain.chain)
        self._scene = Scene.of(self._hook, chain.flat.space)
        self._large = len(chain.tables.ops) > _LARGE
        self._doing = "setting up"
        self._proven: list[Segment] = []
        self.proof = Proof(False, True, None, False, (), {}, 0.0, "")

    @property
    def may_stop(self) -> bool:
        """Whether what is still missing is not worth a larger attempt."""
        return self.proof.complete and self._large

    def run(self, nodes: int, deadline: float) -> None:
        treatments = self._chain.treatments
        diagrams = _diagrams(self._ruleset, self._chain, nodes, deadline)
        outcomes = Outcomes(diagrams)
        conditions = Conditions(treatments, self._scene, diagrams)
        by_rules = Meaning(self._ruleset, treatments, self._hook, conditions, outcomes, diagrams)
        self._doing = "comparing"
        by_tables = Contents(self._chain.tables, outcomes, diagrams)
        example = self._compare(by_rules, by_tables, outcomes, diagrams)
        if example is not None:
            self.proof = replace(
                self.proof, complete=True, holds=False, counterexample=example, covered=_ALL
            )
            return
        parts = tuple(self._proven)
        self.proof = replace(self.proof, complete=True, covered=_ALL, parts=parts)
        if self._shadowed:
            self._doing = "looking for unreachable rules"
            unreachable = unreachable_rules(
                self._ruleset, treatments, self._scene, conditions, diagrams
            )
            self.proof = replace(self.proof, unreachable=unreachable)
        self._doing = "listing the residual functions"
        functions = verdicts_met(self._ruleset, self._chain, conditions, diagrams)
        if functions is None:
            if self._large:
                diagrams.deadline = min(deadline, time.monotonic() + _LISTING_SECONDS)
            functions = functions_of(by_rules.whole(), self._chain, outcomes, diagrams)
        self.proof = replace(self.proof, listed=True, functions=functions)

    def _compare(
        self, by_rules: Meaning, by_tables: Contents, outcomes: Outcomes, diagrams: Diagrams
    ) -> Counterexample | None:
        flat = self._chain.flat
        cutting = Cutting(flat, self._part, self._stand)
        stand, note = frozenset(self._stand), self._proven.append
        difference = differing(cutting, stand, by_rules, by_tables, outcomes, diagrams, note)
        if difference is None:
            return None
        example = self._example(difference, by_tables, diagrams)
        if example.rules != example.tables:
            return example
        # The part differs on packets that do not get there, or that end the same anyway.
        whole = outcomes.difference(by_rules.whole(), by_tables.whole()) & diagrams.valid
        return self._example(whole, by_tables, diagrams) if whole.satisfiable() else None

    def _example(
        self, difference: Packets, by_tables: Contents, diagrams: Diagrams
    ) -> Counterexample:
        found = diagrams.example(difference)
        assert found is not None
        packet, state = found
        treatments, space = self._chain.treatments, self._scene.space
        path = interpret(self._ruleset, treatments, self._hook, space, packet, state)
        tables = by_tables.trace(diagrams.point(packet, state))
        return Counterexample(packet, state, Trace(path.items, path.verdict), tables)

    def ended_by(self, limit: str) -> None:
        """Note what a bound has left undone."""
        why = f"ran out of {limit} while {self._doing}"
        part = _ALL if self.proof.complete else self._part_proven()
        covered = f"{part}; then {why}" if part else f"nothing: {why}"
        self.proof = replace(self.proof, covered=covered)

    def _part_proven(self) -> str:
        if not self._proven:
            return ""
        proven = self._proven[-1]
        entries = f"{proven.stop} of {len(self._chain.tables.ops)} table entries"
        if proven.nat:
            return f"the nat rules before the chain ({entries})"
        rules = len(self._ruleset.tables[self._chain.table].chains[self._chain.chain].rules)
        behind = proven.via[0].number if proven.via else proven.behind
        return f"rules 1 to {behind} of {rules} in {self._chain.chain} ({entries})"


def _diagrams(ruleset: Ruleset, chain: ChainPlan, nodes: int, deadline: float) -> Diagrams:
    uses = field_uses(ruleset, chain)
    return Diagrams(
        chain.flat.family,
        uses,
        _limits(chain),
        # The address that more rules test goes first: measured, it keeps the diagrams small.
        addresses=sorted((Field.SOURCE, Field.DESTINATION), key=lambda f: -uses.get(f, 0)),
        outcome_bits=_OUTCOME_BITS if has_items(chain) else 2,
        nodes=nodes,
        cache=max(1 << 10, nodes * NODE_BYTES // 4 // CACHE_ENTRY_BYTES),
        deadline=deadline,
    )


_ALL = "every packet in every connection state"


def field_uses(ruleset: Ruleset, chain: ChainPlan) -> dict[Field, int]:
    """How many rules of a chain's scope test each field; fields of the tables count at least 0."""
    uses = {Field.FRAGMENT: 0}
    for ref, treatment in chain.treatments.items():
        parts = static_part(ruleset.rule(ref), treatment, chain.flat.space)
        for name in {term.field for term in terms_of(parts)}:
            uses[name] = uses.get(name, 0) + 1
    for axis in chain.tables.axes:
        uses.setdefault(axis.field, 0)
    for name, _ in chain.flat.space.masks:
        uses.setdefault(name, 0)
    return uses


def _limits(chain: ChainPlan) -> dict[Field, int]:
    interfaces = len(chain.flat.space.interfaces)
    return {
        Field.IN_INTERFACE: interfaces,
        Field.OUT_INTERFACE: interfaces,
        Field.SOURCE_TYPE: len(ADDRESS_TYPES),
        Field.DESTINATION_TYPE: len(ADDRESS_TYPES),
    }


def prove_all(
    ruleset: Ruleset, chains: Iterable[ChainPlan], *, seconds: float = 30.0, memory: int = 1 << 30
) -> dict[Hook, Proof]:
    """Prove several chains one after the other within one bound on time."""
    end = time.monotonic() + seconds
    return {
        (chain.table, chain.chain): prove(
            ruleset, chain, seconds=max(0.0, end - time.monotonic()), memory=memory
        )
        for chain in chains
    }
