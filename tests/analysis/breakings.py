"""A ruleset with everything in it, and ways of breaking its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.layout import AxisKind, ChainTables
from bpfilter.ruleset.fields import Family, Field
from bpfilter.ruleset.model import Ruleset
from tests.analysis.built import (
    ACCEPT,
    DROP,
    LOG,
    REJECT,
    RETURN,
    chain,
    dynamic,
    goto,
    interface,
    jump,
    masked,
    port,
    prefix,
    protocol,
    ruleset,
    state,
)

TEN = 10 << 24


def office(family: Family = Family.IPV4) -> Ruleset:
    """A ruleset with every kind of axis and operation."""
    bits = 32 if family is Family.IPV4 else 128
    shift = bits - 32
    return ruleset(
        chain(
            "INPUT",
            [
                ([state(1, 2)], ACCEPT),
                ([interface("lo")], ACCEPT),
                ([protocol(6), port(22)], jump("ssh")),
                ([protocol(17), port(53)], ACCEPT),
                ([protocol(17), dynamic()], ACCEPT),
                ([protocol(17)], LOG),
                ([protocol(17)], REJECT),
                ([prefix(Field.SOURCE, 12 << 24 << shift, 8, bits)], DROP),
                ([prefix(Field.SOURCE, 13 << 24 << shift, 20, bits)], ACCEPT),
                ([prefix(Field.SOURCE, TEN << shift, 16, bits)], ACCEPT),
            ],
            "DROP",
        ),
        chain(
            "ssh",
            [
                ([prefix(Field.SOURCE, TEN << shift, 8, bits)], RETURN),
                ([masked(Field.SOURCE, 0x00FF00FF, 0x00010001)], goto("odd")),
                ([prefix(Field.SOURCE, (11 << 24) + 5 << shift, 32, bits)], DROP),
            ],
        ),
        chain("odd", [([state(0)], ACCEPT)]),
        family=family,
    )


Breaking = Callable[[ChainTables], ChainTables]


def first_block(tables: ChainTables, row: int) -> int:
    """The number of a row's first block."""
    part = int(tables.rows[row, tables.summaries]) & 0xFFFFFFFF
    return int(tables.parts[part, tables.summaries]) & 0xFFFFFFFF


def flipped_bit(tables: ChainTables) -> ChainTables:
    blocks = tables.blocks.copy()
    policy = len(tables.ops) - 1
    first = first_block(tables, tables.axes[0].row_base)
    blocks[first, policy // 64] ^= np.uint64(1 << policy % 64)
    return replace(tables, blocks=blocks)


def hidden_leaf(tables: ChainTables) -> ChainTables:
    parts = tables.parts.copy()
    parts[:, 0] = 0
    return replace(tables, parts=parts)


def hidden_part(tables: ChainTables) -> ChainTables:
    rows = tables.rows.copy()
    rows[:, 0] = 0
    return replace(tables, rows=rows)


def missing_part(tables: ChainTables) -> ChainTables:
    rows = tables.rows.copy()
    rows[tables.axes[0].row_base :, tables.summaries] = len(tables.parts)
    return replace(tables, rows=rows)


def swapped_operations(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    accept = int(np.flatnonzero(ops >> 28 == OpKind.ACCEPT)[-1])
    ops[accept] = OpKind.DROP << 28
    return replace(tables, ops=ops)


def other_item(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    first, second = np.flatnonzero(ops >> 28 == OpKind.ITEM)[:2]
    ops[[first, second]] = ops[[second, first]]
    return replace(tables, ops=ops)


def longer_skip(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    skip = int(np.flatnonzero(ops >> 28 == OpKind.SKIP)[0])
    ops[skip] = OpKind.SKIP << 28 | len(ops) - 1
    return replace(tables, ops=ops)


def wrong_class(tables: ChainTables) -> ChainTables:
    axis = tables.axes[0]
    ids = tables.ids.copy()
    at = axis.base + (13 << 8 if axis.field is Field.SOURCE else 0)
    ids[at] = (ids[at] + 1) % axis.classes if ids[at] < axis.classes else 0
    return replace(tables, ids=ids)


def pointer_outside(tables: ChainTables) -> ChainTables:
    ids = tables.ids.copy()
    ids[tables.axes[0].base + (10 << 8)] = 0x8FFFFFFF
    return replace(tables, ids=ids)


def wrong_fold(tables: ChainTables) -> ChainTables:
    folded = [axis for axis in tables.axes if axis.combine]
    ids = tables.ids.copy()
    ids[folded[0].combine_base : folded[0].combine_base + folded[0].classes * 2] = 0
    return replace(tables, ids=ids)


def lost_states(tables: ChainTables) -> ChainTables:
    return replace(tables, state_classes=tables.state_classes[::-1])


def swapped_rows(tables: ChainTables) -> ChainTables:
    rows = tables.rows.copy()
    base = tables.axes[0].row_base
    assert not np.array_equal(rows[base], rows[base + 1])
    rows[[base, base + 1]] = rows[[base + 1, base]]
    return replace(tables, rows=rows)


def boundary_off_by_one(tables: ChainTables) -> ChainTables:
    """13.0.16.0/24, the first behind 13.0.0.0/20, gets its class."""
    axis = tables.axes[0]
    assert axis.kind is AxisKind.TRIE4
    ids = tables.ids.copy()
    below = axis.base + (1 << 16) + (int(ids[axis.base + (13 << 8)]) & 0x7FFFFFFF) * 256
    assert ids[below + 15] != ids[below + 16]
    ids[below + 16] = ids[below + 15]
    return replace(tables, ids=ids)


def added_bit(tables: ChainTables) -> ChainTables:
    """One more class is in the box of the entry before the policy's."""
    blocks = tables.blocks.copy()
    entry = len(tables.ops) - 2
    axis = tables.axes[0]
    first = first_block(tables, axis.row_base)
    assert not int(blocks[first, entry // 64]) >> entry % 64 & 1
    blocks[first, entry // 64] |= np.uint64(1 << entry % 64)
    return replace(tables, blocks=blocks)


def next_state_class(tables: ChainTables) -> ChainTables:
    return replace(tables, state_row_base=tables.state_row_base - 1)


def item_lost(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    item = int(np.flatnonzero(ops >> 28 == OpKind.ITEM)[0])
    ops[item] = OpKind.SKIP << 28 | item + 1
    return replace(tables, ops=ops)


def item_unknown(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    ops[int(np.flatnonzero(ops >> 28 == OpKind.ITEM)[-1])] |= 0x0FFFFFFF
    return replace(tables, ops=ops)


def unknown_kind(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    ops[int(np.flatnonzero(ops >> 28 == OpKind.DROP)[0])] = 9 << 28
    return replace(tables, ops=ops)


BREAKINGS = (
    swapped_rows,
    boundary_off_by_one,
    added_bit,
    next_state_class,
    item_lost,
    item_unknown,
    unknown_kind,
    flipped_bit,
    hidden_leaf,
    hidden_part,
    missing_part,
    swapped_operations,
    other_item,
    longer_skip,
    wrong_class,
    pointer_outside,
    wrong_fold,
    lost_states,
)
