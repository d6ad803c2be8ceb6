"""What each pass of the compiler made of a ruleset, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfilter.analysis.describe import describe_value
from bpfilter.compiler.compile import assemble
from bpfilter.compiler.ir import Box, FlatChain, Function, OpKind, Space, Walk
from bpfilter.compiler.plan import ChainPlan, Plan, Slot
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, State, field_bits
from bpfilter.ruleset.writer import rule_words

Row = Mapping[str, Any]
_RANGES_SHOWN = 4


class Pass(StrEnum):
    """The passes in their order; each prints the value that the next one takes."""

    CLASSIFIED = "classified"
    FLAT = "flat"
    TABLES = "tables"
    FUNCTIONS = "functions"
    TRANSITIONS = "transitions"


def pass_document(plan: Plan, shown: Pass) -> list[dict[str, Any]]:
    """For every chain of the plan its name and rows: dictionaries with the same keys."""
    if shown is Pass.TRANSITIONS:
        slots = assemble([plan]).slots
        return [_chain(slot.plan, shown, list(_transitions(slot))) for slot in slots]
    make = {
        Pass.CLASSIFIED: lambda chain: _classified(plan, chain),
        Pass.FLAT: lambda chain: _flat(chain.flat),
        Pass.TABLES: _tables,
        Pass.FUNCTIONS: _functions,
    }[shown]
    return [_chain(chain, shown, list(make(chain))) for chain in plan.chains.values()]


def render_passes(found: Mapping[str, Any], console: Console) -> None:
    """Print what `pass_document` gave under `passes`, and a described program."""
    for chain in found.get("passes", ()):
        name = f"{chain['family']} {chain['table']} {chain['chain']}: {chain['pass']}"
        _print_rows(name, chain["rows"], console)
    program = found.get("program")
    if program is None:
        return
    sizes = {"instructions", "verified", "jited_bytes", "helper_calls"}
    _print_rows("program", [{"": key, "count": program[key]} for key in sorted(sizes)], console)
    constants = program["constants"].items()
    _print_rows(
        "constants", [{"": key, "value": _short(value)} for key, value in constants], console
    )
    _print_rows("maps", program["maps"], console)


def _print_rows(title: str, rows: list[Row], console: Console) -> None:
    console.print(Text(title, style="bold"))
    table = Table(box=None, pad_edge=False)
    for key in rows[0] if rows else ():
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    console.print(table)


def _short(value: int) -> str:
    return str(value) if value < 1 << 16 else hex(value)


def _chain(chain: ChainPlan, shown: Pass, rows: list[Row]) -> dict[str, Any]:
    family = str(chain.flat.family)
    return {
        "family": family,
        "table": chain.table,
        "chain": chain.chain,
        "pass": str(shown),
        "rows": rows,
    }


def _classified(plan: Plan, chain: ChainPlan) -> Iterator[Row]:
    for ref, treatment in chain.treatments.items():
        boxes = [describe_box(guard.box, chain.flat.space) for guard in treatment.guards]
        yield {
            "rule": str(ref),
            "action": treatment.action.name.lower(),
            "guards": " | ".join(boxes) or "never",
            "reason": treatment.reason,
            "text": rule_words(plan.ruleset.rule(ref)),
        }


def _flat(flat: FlatChain) -> Iterator[Row]:
    for index, entry in enumerate(flat.entries):
        argument = f" {entry.argument}" if entry.kind in (OpKind.SKIP, OpKind.ITEM) else ""
        yield {
            "entry": index,
            "does": f"{entry.kind.name.lower()}{argument}",
            "packets": describe_box(entry.box, flat.space),
            "states": describe_states(entry.states),
            "rule": str(entry.rule),
        }


def _tables(chain: ChainPlan) -> Iterator[Row]:
    for axis in chain.tables.axes:
        yield {
            "field": str(axis.field),
            "kind": axis.kind.name.lower(),
            "classes": axis.classes,
            "cells": axis.size,
            "combined": axis.combine,
            "ends group": axis.ends_group,
        }
    yield {
        "field": "all",
        "kind": f"{len(chain.tables.rows)} rows",
        "classes": f"{len(chain.tables.parts)} parts, {len(chain.tables.blocks)} blocks",
        "cells": f"{chain.tables.nbytes} bytes",
        "combined": "",
        "ends group": "",
    }


def _functions(chain: ChainPlan) -> Iterator[Row]:
    for index, function in enumerate(chain.functions):
        yield {"function": index, "residual": describe_function(function, chain.flat)}


def _transitions(slot: Slot) -> Iterator[Row]:
    trie = slot.transitions
    for node, function in trie.functions.items():
        yield {"node": node, "residual": describe_function(function, slot.plan.flat)}
    yield {"node": "all", "residual": f"{len(trie.nodes)} nodes, {len(trie.edges)} edges"}


def describe_function(function: Function, flat: FlatChain) -> str:
    """`ESTABLISHED: ACCEPT; NEW: …`: the walks by state, with the rules whose items they pass."""
    uniform = function.uniform
    if uniform is not None:
        return _walk(uniform, flat)
    groups: dict[Walk, int] = {}
    for mask, walk in function.walks:
        groups[walk] = groups.get(walk, 0) | mask
    return "; ".join(f"{describe_states(m)}: {_walk(walk, flat)}" for walk, m in groups.items())


def _walk(walk: Walk, flat: FlatChain) -> str:
    items = [str(flat.items[index].rule) for index in walk.items]
    return ", then ".join([*items, *([] if walk.verdict is None else [str(walk.verdict)])])


def describe_states(states: int) -> str:
    """Names of the states, `any` for all of them."""
    if states == ALL_STATES:
        return "any"
    return "+".join(state.name or "" for state in State if state & states)


def describe_box(box: Box, space: Space) -> str:
    """`field range,range` for every field that the box constrains; `any` for none."""
    words = [f"{name} {_ranges(name, list(values), space)}" for name, values in box.items()]
    return " ".join(words) or "any"


def _ranges(name: Field, pairs: list[tuple[int, int]], space: Space) -> str:
    shown = [_range(name, low, high, space) for low, high in pairs[:_RANGES_SHOWN]]
    more = len(pairs) - _RANGES_SHOWN
    return ",".join(shown) + (f",… {more} more" if more > 0 else "")


def _range(name: Field, low: int, high: int, space: Space) -> str:
    if low == high:
        return describe_value(name, low, space) or "(other)"
    bits = field_bits(name, space.family)
    span = high - low + 1
    if name in (Field.SOURCE, Field.DESTINATION) and span & (span - 1) == 0 == low % span:
        width = 32 if space.family is Family.IPV4 else bits
        return f"{describe_value(name, low, space)}/{width - span.bit_length() + 1}"
    return f"{describe_value(name, low, space)}-{describe_value(name, high, space)}"
