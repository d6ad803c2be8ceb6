"""The compiler as a whole: ruleset → plan → image. Pure: nothing here touches the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bpfilter.collection import paused
from bpfilter.compiler.classify import classify
from bpfilter.compiler.codes import CODES, assign
from bpfilter.compiler.flatten import flatten
from bpfilter.compiler.functions import enumerate_functions
from bpfilter.compiler.plan import ChainPlan, Image, Plan, Slot
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.transitions import build_transitions
from bpfilter.ruleset.model import Ruleset

CHAINS: tuple[tuple[str, str], ...] = (
    ("raw", "PREROUTING"),
    ("filter", "INPUT"),
    ("filter", "FORWARD"),
    ("filter", "OUTPUT"),
)
"""The built-in chains that are translated."""

DISPATCHED: tuple[tuple[str, str], ...] = (("filter", "INPUT"), ("filter", "FORWARD"))
"""The chains whose outcome a mark can carry to a dispatch."""

_SEED = 20260
_BUDGET = 20_000
"""Packets walked to find the residual functions; what they miss is punted."""


def compile_ruleset(
    ruleset: Ruleset, chains: Sequence[tuple[str, str]] = CHAINS, *, budget: int = _BUDGET
) -> Plan:
    """Translate the given built-in chains, those that the ruleset has.

    Raises CompileError if a chain exceeds the limits of the compiled form.
    """
    seconds: dict[str, float] = {}
    with paused():
        plans = {
            key: compile_chain(ruleset, *key, seconds=seconds, budget=budget)
            for key in chains
            if key[0] in ruleset.tables and key[1] in ruleset.tables[key[0]].chains
        }
    return Plan(ruleset, plans, ruleset.warnings, seconds)


def compile_chain(
    ruleset: Ruleset,
    table: str,
    chain: str,
    *,
    seconds: dict[str, float] | None = None,
    budget: int = _BUDGET,
) -> ChainPlan:
    """Run all passes on one built-in chain; adds each pass's time to `seconds`."""
    clock = _Clock({} if seconds is None else seconds)
    classified = classify(ruleset, table, chain)
    clock.lap("classify")
    flat = flatten(ruleset, classified)
    clock.lap("flatten")
    tables = build_tables(flat)
    clock.lap("tables")
    plan = ChainPlan(table, chain, classified.treatments, flat, tables, ())
    plan = with_functions_met(plan, budget=budget)
    clock.lap("functions")
    return plan


def with_functions_met(chain: ChainPlan, *, budget: int = _BUDGET) -> ChainPlan:
    """The plan with the residual functions that so many sampled packets meet."""
    found = enumerate_functions(chain.flat, np.random.default_rng(_SEED), budget, chain.tables)
    ranked = sorted(found, key=lambda pair: -pair[1])
    return replace(chain, functions=tuple(function for function, _ in ranked))


def assemble(plans: Sequence[Plan], *, code_space: int = CODES) -> Image:
    """Give every residual function its code and make each chain's transitions.

    Takes the chains that have a dispatch; of plans compiled for one chain alone, that chain.
    """
    chosen = [
        (plan.ruleset, chain)
        for plan in plans
        for key, chain in plan.chains.items()
        if key in DISPATCHED or len(plan.chains) == 1
    ]
    codes = assign(chosen, code_space)
    slots = []
    for _, chain in chosen:
        numbers = {
            code.function: code.number
            for code in codes
            if (code.family, code.table, code.chain)
            == (chain.flat.family, chain.table, chain.chain)
        }
        slots.append(Slot(chain, build_transitions(chain.flat, numbers)))
    return Image(tuple(slots), codes)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now
