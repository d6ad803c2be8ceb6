"""A reader of chain tables that follows layout.py step by step, as the BPF program does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bpfilter.compiler.ir import Walk
from bpfilter.compiler.layout import (
    BLOCK_WORDS,
    LIST_INTERVALS,
    TRIE_LIST,
    TRIE_POINTER,
    U64,
    Axis,
    AxisKind,
    ChainTables,
)
from bpfilter.compiler.walk import Packet, follow


def classify(tables: ChainTables, packet: Packet) -> dict[int, Walk]:
    """The packet's walk for every class of states, read from the tables' arrays alone."""
    rows = packet_rows(tables, packet)
    return {
        mask: follow(tables.flat, matching_entries(tables, [*rows, tables.state_row_base + s]))[0]
        for s, mask in enumerate(tables.state_classes)
    }


def packet_rows(tables: ChainTables, packet: Packet) -> list[int]:
    """The row of each group that the packet selects."""
    rows = []
    acc = 0
    for axis in tables.axes:
        found = class_id(tables, axis, packet[axis.field])
        if axis.combine:
            found = int(tables.ids[axis.combine_base + acc * axis.classes + found])
        acc = found
        if axis.ends_group:
            rows.append(axis.row_base + acc)
    return rows


def class_id(tables: ChainTables, axis: Axis, value: int) -> int:
    """The class of one value on one axis."""
    ids = tables.ids
    if axis.kind is AxisKind.TRIE4:
        return _trie_class(tables, axis, value)
    if axis.kind is AxisKind.BOUNDS6:
        return int(ids[axis.base + _last_bound(tables, axis, value)])
    if axis.kind is AxisKind.MAC:
        return int(ids[axis.base + tables.macs.get(value, 0)])
    assert value < axis.size
    return int(ids[axis.base + value])


def _trie_class(tables: ChainTables, axis: Axis, address: int) -> int:
    found = int(tables.ids[axis.base + (address >> 16)])
    left = address & 0xFFFF
    for shift in (8, 0):
        if not found & TRIE_POINTER or found & TRIE_LIST:
            break
        block = found & ~TRIE_POINTER
        found = int(tables.ids[axis.base + 65536 + block * 256 + (left >> shift)])
        left &= (1 << shift) - 1
    if not found & TRIE_LIST:
        return found
    first = axis.base + axis.lists_base + (found & (TRIE_LIST - 1)) * 2 * LIST_INTERVALS
    starts = tables.ids[first + 1 : first + LIST_INTERVALS].tolist()
    below = sum(start <= left for start in starts)
    return int(tables.ids[first + LIST_INTERVALS + below])


def _last_bound(tables: ChainTables, axis: Axis, address: int) -> int:
    low, high = 0, axis.bounds_count
    while high - low > 1:
        middle = (low + high) // 2
        bound = tables.bounds[axis.bounds_base + middle]
        if (int(bound[0]) << 64 | int(bound[1])) <= address:
            low = middle
        else:
            high = middle
    return low


def matching_entries(tables: ChainTables, rows: list[int]) -> Iterator[int]:
    """The entries whose bits are set in all rows, ascending, by summary and leaf words."""
    chosen = tables.rows[rows]
    references = np.ascontiguousarray(chosen[:, tables.summaries :]).view("<u4")
    for number in _bits(_meeting(tables, chosen)):
        parts = tables.parts[references[:, number]]
        blocks = np.ascontiguousarray(parts[:, tables.summaries :]).view("<u4")
        for word in _bits(_meeting(tables, parts)):
            chosen_blocks = blocks[:, word // BLOCK_WORDS]
            leaf = np.bitwise_and.reduce(tables.blocks[chosen_blocks, word % BLOCK_WORDS])
            for bit in _bits(int(leaf)):
                yield (number * 64 + word) * 64 + bit


def _meeting(tables: ChainTables, rows: U64) -> int:
    """What the tops of rows, or the summaries of their parts, have in common."""
    common = int(np.bitwise_and.reduce(rows[2 * tables.paired :, 0]))
    if tables.paired:
        (source, destination), (first, second) = rows[:2, 0], rows[:2, 1]
        common &= int(source | destination | (first & second))
    return common


def _bits(word: int) -> Iterator[int]:
    while word:
        lowest = word & -word
        yield lowest.bit_length() - 1
        word ^= lowest
