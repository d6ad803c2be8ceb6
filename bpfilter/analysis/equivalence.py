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
from bpfilter.analysis.contents import contents
from bpfilter.analysis.diagrams import (
    CACHE_ENTRY_BYTES,
    NODE_BYTES,
    Diagrams,
    LimitReached,
    MemoryExhausted,
    Packets,
)
from bpfilter.analysis.functions import functions_of
from bpfilter.analysis.meaning import Conditions, meaning
from bpfilter.analysis.outcomes import OutcomeMap, Outcomes, Trace
from bpfilter.analysis.reach import unreachable_rules
from bpfilter.compiler.ir import Action, Function
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.fields import ADDRESS_TYPES, Field
from bpfilter.ruleset.model import RuleRef, Ruleset

_OUTCOME_BITS = 16
_SMALL = 1 << 18
_NODES_PER_ENTRY = 1024


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

    `complete`: all packets and states were compared; if not, `covered` says what was and why not
    more. `holds`: no difference was found. `listed`: the following two are exact (else empty).
    `functions`: the residual functions that packets can meet. `unreachable`: rules that no packet
    reaches through this chain in any state, with the rules that shadow each (none: its own
    matches, or those of the jumps to its chain, exclude each other).
    """

    complete: bool
    holds: bool
    counterexample: Counterexample | None
    listed: bool
    functions: tuple[Function, ...]
    unreachable: Mapping[RuleRef, tuple[RuleRef, ...]]
    seconds: float
    covered: str


def prove(
    ruleset: Ruleset, chain: ChainPlan, *, seconds: float = 30.0, memory: int = 1 << 30
) -> Proof:
    """Compare one chain's rules with its tables for every packet and connection state.

    Bounded by wall time and by bytes of memory for the diagrams: past a bound the result is
    incomplete, never wrong.
    """
    start = time.monotonic()
    most = memory * 3 // 4 // NODE_BYTES
    nodes = min(most, max(_SMALL, _NODES_PER_ENTRY * len(chain.tables.ops)))
    while True:
        attempt = _Attempt(ruleset, chain)
        try:
            proof = attempt.run(nodes, start + seconds)
            break
        except MemoryExhausted:
            if nodes >= most:
                proof = attempt.ended_by(f"memory ({memory >> 20} MiB)")
                break
            nodes = min(most, nodes * 16)
        except LimitReached as limit:
            proof = attempt.ended_by(str(limit))
            break
    return replace(proof, seconds=time.monotonic() - start)


class _Attempt:
    """One run with a given capacity."""

    def __init__(self, ruleset: Ruleset, chain: ChainPlan) -> None:
        self._ruleset = ruleset
        self._chain = chain
        self._hook: Hook = (chain.table, chain.chain)
        self._scene = Scene.of(self._hook, chain.flat.space)
        self._doing = "setting up"
        self._equal = False

    def run(self, nodes: int, deadline: float) -> Proof:
        treatments = self._chain.treatments
        diagrams = _diagrams(self._ruleset, self._chain, nodes, deadline)
        outcomes = Outcomes(diagrams)
        conditions = Conditions(treatments, self._scene, diagrams)
        self._doing = "composing the rules"
        by_rules = meaning(self._ruleset, treatments, self._hook, conditions, outcomes, diagrams)
        self._doing = "reading the tables back"
        by_tables = contents(self._chain.tables, outcomes, diagrams)
        difference = outcomes.difference(by_rules, by_tables) & diagrams.valid
        if difference.satisfiable():
            example = _example(difference, by_rules, by_tables, outcomes, diagrams)
            return Proof(True, False, example, False, (), {}, 0.0, _EVERYTHING)
        self._equal = True
        self._doing = "listing the residual functions"
        functions = functions_of(by_rules, self._chain, outcomes, diagrams)
        self._doing = "looking for unreachable rules"
        unreachable = unreachable_rules(
            self._ruleset, treatments, self._scene, conditions, diagrams
        )
        return Proof(True, True, None, True, functions, unreachable, 0.0, _EVERYTHING)

    def ended_by(self, limit: str) -> Proof:
        """The proof that is left when a bound ends the run."""
        why = f"ran out of {limit} while {self._doing}"
        covered = f"{_EVERYTHING}; then {why}" if self._equal else f"nothing: {why}"
        return Proof(self._equal, True, None, False, (), {}, 0.0, covered)


def _diagrams(ruleset: Ruleset, chain: ChainPlan, nodes: int, deadline: float) -> Diagrams:
    uses = field_uses(ruleset, chain)
    return Diagrams(
        chain.flat.family,
        uses,
        _limits(chain),
        # The address that more rules test goes first: measured, it keeps the diagrams small.
        addresses=sorted((Field.SOURCE, Field.DESTINATION), key=lambda f: -uses.get(f, 0)),
        outcome_bits=_OUTCOME_BITS if _has_items(chain) else 1,
        nodes=nodes,
        cache=max(1 << 10, nodes * NODE_BYTES // 4 // CACHE_ENTRY_BYTES),
        deadline=deadline,
    )


def _example(
    difference: Packets,
    by_rules: OutcomeMap,
    by_tables: OutcomeMap,
    outcomes: Outcomes,
    diagrams: Diagrams,
) -> Counterexample:
    found = diagrams.example(difference)
    assert found is not None
    packet, state = found
    point = diagrams.point(packet, state)
    rules, tables = (
        next(trace for trace, _ in outcomes.split(side, point)) for side in (by_rules, by_tables)
    )
    return Counterexample(packet, state, rules, tables)


_EVERYTHING = "every packet in every connection state"


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


def _has_items(chain: ChainPlan) -> bool:
    return any(treatment.action is Action.ITEM for treatment in chain.treatments.values())


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
