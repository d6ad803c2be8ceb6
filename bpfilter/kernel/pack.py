"""From an image to the contents of the program's maps and its constants. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.classes import stripe_count
from bpfilter.compiler.ir import FlatChain, OpKind
from bpfilter.compiler.layout import (
    AXES,
    LIST_INTERVALS,
    PART_BLOCKS,
    TRIE_LIST,
    TRIE_POINTER,
    U32,
    U64,
    AxisKind,
    ChainTables,
)
from bpfilter.compiler.plan import Image, Slot
from bpfilter.compiler.transitions import ROOT
from bpfilter.errors import CompileError
from bpfilter.kernel.config import MAX_MASKS, MAX_STATES, SLOTS, Config, SlotConfig
from bpfilter.ruleset.fields import Family, Field

LINE = 64
"""Bytes of a cache line."""

NARROW = 1 << 16
"""Up to so many blocks, or parts, are referred to by u16."""

ALONE = 1
"""Up to so many parts a row is its part: a reference less to follow."""

_COUNTS_PER_LINE = LINE // 16

OP_LAST_ITEM = 6
SMALL = 1 << 14
"""Below it numbers of `ids` fit into 16 bits, with both bits of a trie's."""

_NONE = np.zeros(0, np.uint64)
_POINTER_BITS = np.uint32(TRIE_POINTER | TRIE_LIST)
I64 = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.unsignedinteger]
_AXIS_NUMBER = {field: number for number, field in enumerate(AXES)}


@dataclass(frozen=True, slots=True)
class Contents:
    """What the maps hold. Array maps: their elements; hash maps: keys and values.

    `slots[i]` is the chain in slot i: 0 and 1 are IPv4's first chain and FORWARD, 2 and 3 IPv6's.
    Counters of slot i begin at `counter_bases[i]`, two per entry.
    """

    ids: Numbers
    bounds: U64
    rows: U64
    blocks: U64
    ops: Numbers
    nodes: U32
    edges: tuple[U64, U32]
    macs: tuple[U64, U32]
    counters: int
    slots: tuple[Slot | None, ...]
    counter_bases: tuple[int, ...]
    parts_count: int
    """Parts stand behind the blocks, in the same map."""

    @property
    def counter_stride(self) -> int:
        """Counts from one CPU's row of counters to the next: rows begin with a cache line."""
        return -(-self.counters // _COUNTS_PER_LINE) * _COUNTS_PER_LINE

    def without_tables(self) -> Contents:
        """For who has written the tables into maps and goes on counting by the rest."""
        none = self.rows[:0].copy()
        return replace(self, ids=self.ids[:0].copy(), bounds=none, rows=none, blocks=none)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables, counters left out."""
        arrays = (self.ids, self.bounds, self.rows, self.blocks, self.ops, self.nodes)
        return sum(a.nbytes for a in (*arrays, *self.edges, *self.macs))


def place(image: Image) -> tuple[Slot | None, ...]:
    """Which chain takes which slot; CompileError if two chains want one."""
    placed: list[Slot | None] = [None] * SLOTS
    for slot in image.slots:
        number = slot_number(slot.plan.flat.family, slot.plan.chain)
        other = placed[number]
        if other is not None:
            raise CompileError(
                f"{other.plan.table}/{other.plan.chain} and {slot.plan.table}/{slot.plan.chain} "
                "cannot be in one program",
                hint="compile them apart",
            )
        placed[number] = slot
    return tuple(placed)


def slot_number(family: Family, chain: str) -> int:
    """The program's slot of a chain."""
    return 2 * (family is Family.IPV6) + (chain == "FORWARD")


@dataclass(slots=True)
class _Parts:
    """Arrays of one kind, one after the other."""

    parts: list[Any]
    used: int = 0

    def add(self, part: Any) -> int:
        base = self.used
        self.parts.append(part)
        self.used += len(part)
        return base


def pack(image: Image, config: Config) -> Contents:
    """Lay all chains into one set of maps, and write their bases into `config.slots`."""
    slots = place(image)
    used = [slot.plan.tables for slot in slots if slot is not None]
    config.summary_words = max((t.summary_words for t in used), default=1)
    config.tall = config.summary_words > ALONE
    stripes = max((stripe_count(len(t.ops)) for t in used), default=1)
    config.stripes = PART_BLOCKS if config.tall else stripes
    config.summaries = 1 + any(t.paired for t in used)
    config.narrow = sum(len(t.blocks) for t in used) <= NARROW
    config.narrow_parts = sum(len(t.parts) for t in used) <= NARROW
    config.small_ids = all(_fits_small(t) for t in used)
    ids, bounds, rows, parts, blocks, ops, nodes = (_Parts([]) for _ in range(7))
    edges: dict[int, int] = {}
    macs: dict[int, int] = {}
    counters = 0
    bases = []
    for number, slot in enumerate(slots):
        bases.append(counters)
        if slot is None:
            continue
        tables = slot.plan.tables
        target = config.slots[number]
        block_base = blocks.add(tables.blocks)
        own = _parts(tables, config, block_base)
        row_base = rows.add(_rows(tables, config, own, parts.add(own) if config.tall else 0))
        _slot_config(
            target, slot, ids.add(_ids(tables, config)), bounds.add(tables.bounds), row_base
        )
        target.ops_base = ops.add(_ops(tables))
        target.node_base = nodes.add(slot.transitions.nodes)
        _plain(target, slot.transitions.nodes)
        target.counter_base = counters
        counters += 2 * len(tables.ops)
        for (node, item), behind in slot.transitions.edges.items():
            edges[(target.node_base + node) << 32 | item] = behind
        macs.update({number << 48 | address: value for address, value in tables.macs.items()})
    joined = np.concatenate([part.reshape(-1) for part in (*blocks.parts, *parts.parts)] or [_NONE])
    contents = Contents(
        ids=_joined(ids.parts),
        bounds=np.concatenate([np.zeros((0, 2), np.uint64), *bounds.parts]),
        rows=np.concatenate(rows.parts or [np.zeros((0, 1), np.uint64)]),
        blocks=joined,
        ops=_joined(ops.parts),
        nodes=np.concatenate([np.zeros((0, 4), np.uint32), *nodes.parts]),
        edges=_hash(edges),
        macs=_hash(macs),
        counters=counters,
        slots=slots,
        counter_bases=tuple(bases),
        parts_count=parts.used,
    )
    config.blocks_count = blocks.used
    _bound(config, contents)
    return contents


def _bound(config: Config, contents: Contents) -> None:
    """How far the program may reach into every table."""
    config.pitch = 8 * contents.rows.shape[1]
    config.ids_count = len(contents.ids)
    config.bounds_count = len(contents.bounds)
    config.rows_count = len(contents.rows)
    config.parts_count = contents.parts_count
    config.ops_count = len(contents.ops)
    config.counter_stride = contents.counter_stride


def _pitch(size: int) -> int:
    """Words per row or part: whole cache lines, or a part of one that never lies across two."""
    return (
        -(-size // LINE) * LINE // 8 if size > LINE // 2 else 1 << (-(-size // 8) - 1).bit_length()
    )


def _parts(tables: ChainTables, config: Config, block_base: int) -> U64:
    """The chain's parts at the common width; references become absolute, and narrow if they can."""
    own = np.ascontiguousarray(tables.parts[:, tables.summaries :]).view("<u4")
    references = own[:, : config.stripes] + np.uint32(block_base)
    return _wide(tables.parts[:, : tables.summaries], references, config, config.narrow)


def _rows(tables: ChainTables, config: Config, parts: U64, part_base: int) -> U64:
    """The chain's rows at the common width: their only parts, or tops and references to parts."""
    own = np.ascontiguousarray(tables.rows[:, tables.summaries :]).view("<u4")
    if not config.tall:
        chosen: U64 = parts[own[:, 0]]
        return chosen
    named = np.full((len(own), config.summary_words), part_base, np.uint32)
    named[:, : tables.summary_words] = own[:, : tables.summary_words] + np.uint32(part_base)
    return _wide(tables.rows[:, : tables.summaries], named, config, config.narrow_parts)


def _wide(heads: U64, references: U32, config: Config, narrow: int) -> U64:
    """Tops or summaries, then references."""
    width = 2 if narrow else 4
    pitch = _pitch(8 * config.summaries + width * references.shape[1])
    wide = np.zeros((len(heads), pitch), np.uint64)
    wide[:, : heads.shape[1]] = heads
    first = 8 * config.summaries // width
    wide.view(f"<u{width}")[:, first : first + references.shape[1]] = references
    return wide


def _ops(tables: ChainTables) -> U32:
    """Items that end the walk get an operation of their own."""
    last = [
        index
        for index, entry in enumerate(tables.flat.entries)
        if entry.kind is OpKind.ITEM and tables.flat.items[entry.argument].terminal
    ]
    ops = tables.ops.copy()
    ops[last] = ops[last] & 0x0FFFFFFF | OP_LAST_ITEM << 28
    return ops


def _slot_config(target: SlotConfig, slot: Slot, ids: int, bounds: int, rows: int) -> None:
    tables = slot.plan.tables
    if len(tables.state_classes) > MAX_STATES or len(tables.flat.space.masks) > MAX_MASKS:
        raise CompileError(
            f"{slot.plan.table}/{slot.plan.chain} exceeds the program's fixed limits",
            hint=f"at most {MAX_MASKS} different masks that are no prefixes",
        )
    target.used = 1
    target.forward = slot.plan.chain == "FORWARD"
    target.groups = sum(axis.ends_group for axis in tables.axes)
    target.states = len(tables.state_classes)
    target.paired = tables.paired
    # Without any row the candidates would be a constant, and the verifier would try them all.
    target.stateful = _stateful(tables.flat) or not tables.axes
    target.state_row = rows + tables.state_row_base
    for axis in tables.axes:
        number = _AXIS_NUMBER[axis.field]
        target.axes_used |= 1 << number
        target.axes_combine |= axis.combine << number
        target.axes_last |= axis.ends_group << number
        a = target.axes[number]
        a.base = ids + axis.base
        a.classes = axis.classes
        a.combine_base = ids + axis.combine_base
        a.bounds_base = bounds + axis.bounds_base
        a.bounds_count = axis.bounds_count
        a.lists_base = axis.lists_base if axis.lists_base < axis.size else 0
        a.row_base = rows + axis.row_base
    target.mask_count = len(tables.flat.space.masks)
    for index, (field, masked) in enumerate(tables.flat.space.masks):
        m = target.masks[index]
        m.axis = _AXIS_NUMBER[field]
        for word in range(4):
            m.mask[word] = masked.mask >> (96 - 32 * word) & 0xFFFFFFFF
            m.value[word] = masked.value >> (96 - 32 * word) & 0xFFFFFFFF


def _plain(target: SlotConfig, nodes: U32) -> None:
    """What a walk from the root comes to that meets no item."""
    for kind in (OpKind.ACCEPT, OpKind.DROP, OpKind.PUNT):
        node = int(nodes[ROOT, kind - OpKind.ACCEPT])
        target.plain_node[kind] = node
        target.plain_final[kind] = int(nodes[node, 3])


def _stateful(flat: FlatChain) -> bool:
    """Whether some entry fails to apply in some state: then rows of states take part.

    Entries that want fragments apply in none, see compiler.rows.
    """
    return any(entry.states != 31 or Field.FRAGMENT in entry.box for entry in flat.entries)


def _list_starts(tables: ChainTables) -> I64:
    """Where in `ids` the starts of the tries' lists stand: 16 bits each."""
    places = [
        axis.base + np.arange(axis.lists_base, axis.size, 2 * LIST_INTERVALS)
        for axis in tables.axes
        if axis.kind is AxisKind.TRIE4
    ]
    lists = np.concatenate([np.zeros(0, np.int64), *places])
    return (lists[:, None] + np.arange(LIST_INTERVALS)).reshape(-1)


def _fits_small(tables: ChainTables) -> bool:
    numbers = tables.ids & ~_POINTER_BITS
    numbers[_list_starts(tables)] = 0
    return int(numbers.max(initial=0)) < SMALL


def _ids(tables: ChainTables, config: Config) -> Numbers:
    """Numbers as u16 if they fit, a trie's bits moved to the top: half the memory to miss."""
    if not config.small_ids:
        return tables.ids
    ids = tables.ids
    small = (ids & np.uint32(SMALL - 1) | (ids & _POINTER_BITS) >> 16).astype(np.uint16)
    starts = _list_starts(tables)
    small[starts] = ids[starts]
    return small


def _joined(parts: Sequence[Numbers]) -> Numbers:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint32)


def _hash(entries: dict[int, int]) -> tuple[U64, U32]:
    keys = np.array(list(entries.keys()), np.uint64)
    return keys, np.array(list(entries.values()), np.uint32)
