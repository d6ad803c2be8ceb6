"""The entries and residual functions of many packets at once, read from chain tables."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from bpfilter.compiler.intervals import I64
from bpfilter.compiler.ir import PUNTED, FlatChain, Function, OpKind, Verdict, Walk
from bpfilter.compiler.layout import (
    LIST_INTERVALS,
    TRIE_LIST,
    TRIE_POINTER,
    U32,
    Axis,
    AxisKind,
    ChainTables,
)
from bpfilter.compiler.walk import Packet

_CHUNK = 1024


def functions_of(tables: ChainTables, packets: Sequence[Packet]) -> list[Function]:
    """The residual function of every packet, in order."""
    flat = tables.flat
    known: dict[int, Function] = {}
    result = []
    states = state_bits(tables)
    for bits in matching_bits(tables, packets):
        function = known.get(bits)
        if function is None:
            walks = (
                (mask, follow_bits(flat, bits & states[index])[0])
                for index, mask in enumerate(tables.state_classes)
            )
            function = known[bits] = Function(tuple(walks))
        result.append(function)
    return result


def follow_bits(flat: FlatChain, bits: int) -> tuple[Walk, int]:
    """The walk over the entries whose bits are set, and the last entry; see walk.follow."""
    items: list[int] = []
    entries = flat.entries
    while True:
        lowest = bits & -bits
        index = lowest.bit_length() - 1
        entry = entries[index]
        if entry.kind is OpKind.SKIP:
            bits = bits >> entry.argument << entry.argument
            continue
        if entry.kind is OpKind.ITEM:
            items.append(entry.argument)
            if flat.items[entry.argument].terminal:
                return Walk(tuple(items), None), index
            bits ^= lowest
        elif entry.kind is OpKind.PUNT:
            return PUNTED, index
        else:
            verdict = Verdict.ACCEPT if entry.kind is OpKind.ACCEPT else Verdict.DROP
            return Walk(tuple(items), verdict), index


def state_bits(tables: ChainTables) -> tuple[int, ...]:
    """For each class of states, the entries that apply in it, as bits of an integer."""
    first = tables.state_row_base
    rows = np.arange(first, first + len(tables.state_classes))
    return tuple(_integers(tables, [rows]))


def matching_bits(tables: ChainTables, packets: Sequence[Packet]) -> Iterator[int]:
    """For each packet, the entries whose boxes hold it, as bits of an integer."""
    if not tables.axes:
        yield from [(1 << len(tables.flat.entries)) - 1] * len(packets)
        return
    for start in range(0, len(packets), _CHUNK):
        rows = packet_rows(tables, packets[start : start + _CHUNK])
        yield from _integers(tables, rows)


def packet_rows(tables: ChainTables, packets: Sequence[Packet]) -> list[I64]:
    """For each group, the rows that the packets select."""
    rows = []
    acc = np.zeros(len(packets), np.int64)
    for axis in tables.axes:
        found = _class_ids(tables, axis, [packet[axis.field] for packet in packets])
        if axis.combine:
            found = tables.ids[axis.combine_base + acc * axis.classes + found].astype(np.int64)
        acc = found
        if axis.ends_group:
            rows.append(axis.row_base + acc)
    return rows


def _class_ids(tables: ChainTables, axis: Axis, values: list[int]) -> I64:
    ids = tables.ids[axis.base :]
    if axis.kind is AxisKind.BOUNDS6:
        part = tables.bounds[axis.bounds_base : axis.bounds_base + axis.bounds_count]
        bounds = [high << 64 | low for high, low in part.tolist()]
        indices = [bisect.bisect_right(bounds, value) - 1 for value in values]
        return ids[np.array(indices, np.int64)].astype(np.int64)
    if axis.kind is AxisKind.MAC:
        indices = [tables.macs.get(value, 0) for value in values]
        return ids[np.array(indices, np.int64)].astype(np.int64)
    wanted: I64 = np.array(values, np.int64)
    if axis.kind is AxisKind.DIRECT:
        return ids[wanted].astype(np.int64)
    found: I64 = ids[wanted >> 16].astype(np.int64)
    _resolve_lists(ids[axis.lists_base :], found, wanted & 0xFFFF)
    for shift in (8, 0):
        deeper = found & TRIE_POINTER != 0
        block = found[deeper] & ~TRIE_POINTER
        found[deeper] = ids[65536 + block * 256 + (wanted[deeper] >> shift & 255)]
        _resolve_lists(ids[axis.lists_base :], found, wanted & 0xFF)
    return found


def _resolve_lists(lists: U32, found: I64, low: I64) -> None:
    """Put classes in place of the numbers that name lists."""
    listed = found & TRIE_LIST != 0
    first = (found[listed] & (TRIE_LIST - 1)) * 2 * LIST_INTERVALS
    starts = lists[first[:, None] + np.arange(1, LIST_INTERVALS)]
    below = (starts <= low[listed, None]).sum(axis=1)
    found[listed] = lists[first + LIST_INTERVALS + below]


def _integers(tables: ChainTables, rows: Sequence[I64]) -> Iterator[int]:
    """The conjunction of each packet's rows, bit i of the integer being entry i."""
    result = None
    for group in rows:
        named = np.ascontiguousarray(tables.rows[group, tables.summaries :]).view("<u4")
        parts = tables.parts[named[:, : tables.summary_words], tables.summaries :]
        leaves = tables.blocks[np.ascontiguousarray(parts).view("<u4")]
        result = leaves if result is None else result & leaves
    if result is not None:
        for leaves in result:
            yield int.from_bytes(leaves.astype("<u8").tobytes(), "little")
