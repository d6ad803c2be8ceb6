"""Proves that the compiled tables of a chain say of every packet what its rules say.

Translation validation: the parsed rules and the loaded arrays are each composed into one decision
diagram over all packets and connection states, by code that shares nothing with the compiler. The
two must be the same diagram.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

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

_T = TypeVar("_T")
_OUTCOME_BITS = 16
_SMALL = 1 << 18


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
    more, and the rest of the proof must not be relied on. `holds`: no difference was found.
    `functions`: exactly the residual functions that packets can meet. `unreachable`: rules that no
    packet reaches through this chain in any state, with the rules that shadow each (none: its own
    matches, or those of the jumps to its chain, exclude each other).
    """

    complete: bool
    holds: bool
    counterexample: Counterexample | None
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
    nodes = _first_size(ruleset, chain)
    most = memory * 3 // 4 // NODE_BYTES
    while True:
        nodes = min(nodes, most)
        attempt = _Attempt(ruleset, chain, nodes, start + seconds)
        try:
            proof = attempt.run()
            break
        except MemoryExhausted:
            if nodes >= most:
                proof = _incomplete(f"memory of {memory >> 20} MiB", attempt.doing)
                break
            nodes *= 16
        except LimitReached as limit:
            proof = _incomplete(str(limit), attempt.doing)
            break
    return replace(proof, seconds=time.monotonic() - start)


def _incomplete(limit: str, doing: str) -> Proof:
    covered = f"nothing: the proof ran out of {limit} while {doing}"
    return Proof(False, True, None, (), {}, 0.0, covered)


def _first_size(ruleset: Ruleset, chain: ChainPlan) -> int:
    """A node capacity that suffices for most chains of this size."""
    entries = len(chain.tables.ops)
    return max(_SMALL, 1024 * entries)


class _Attempt:
    """One run with a given capacity. `doing` names the step, for the report."""

    def __init__(self, ruleset: Ruleset, chain: ChainPlan, nodes: int, deadline: float) -> None:
        self.doing = "setting up"
        self._ruleset = ruleset
        self._chain = chain
        self._hook: Hook = (chain.table, chain.chain)
        self._scene = Scene.of(self._hook, chain.flat.space)
        uses = field_uses(ruleset, chain)
        self._diagrams = Diagrams(
            chain.flat.family,
            uses,
            _limits(chain),
            addresses=sorted((Field.SOURCE, Field.DESTINATION), key=lambda f: -uses.get(f, 0)),
            outcome_bits=_OUTCOME_BITS if _has_items(chain) else 3,
            nodes=nodes,
            cache=max(1 << 14, min(nodes // 4, nodes * NODE_BYTES // 4 // CACHE_ENTRY_BYTES)),
            deadline=deadline,
        )
        self._outcomes = Outcomes(self._diagrams)

    def run(self) -> Proof:
        diagrams, outcomes = self._diagrams, self._outcomes
        treatments = self._chain.treatments
        conditions = Conditions(treatments, self._scene, diagrams)
        by_rules = self._step(
            "composing the rules",
            lambda: meaning(self._ruleset, treatments, self._hook, conditions, outcomes, diagrams),
        )
        by_tables = self._step(
            "reading the tables back", lambda: contents(self._chain.tables, outcomes, diagrams)
        )
        difference = outcomes.difference(by_rules, by_tables) & diagrams.valid
        if difference.satisfiable():
            example = self._example(difference, by_rules, by_tables)
            return Proof(True, False, example, (), {}, 0.0, _EVERYTHING)
        functions = self._step(
            "listing the residual functions",
            lambda: functions_of(by_rules, self._chain, outcomes, diagrams),
        )
        unreachable = self._step(
            "looking for unreachable rules",
            lambda: unreachable_rules(self._ruleset, treatments, self._scene, conditions, diagrams),
        )
        return Proof(True, True, None, functions, unreachable, 0.0, _EVERYTHING)

    def _step(self, doing: str, action: Callable[[], _T]) -> _T:
        self.doing = doing
        return action()

    def _example(
        self, difference: Packets, by_rules: OutcomeMap, by_tables: OutcomeMap
    ) -> Counterexample:
        found = self._diagrams.example(difference)
        assert found is not None
        packet, state = found
        point = self._diagrams.point(packet, state)
        traces = [
            next(trace for trace, _ in self._outcomes.split(outcome, point))
            for outcome in (by_rules, by_tables)
        ]
        return Counterexample(packet, state, traces[0], traces[1])


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
