"""Pass 3: a flat chain becomes the arrays of layout.py. Exact for every packet, or CompileError."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.axes import FieldAxis, field_axis
from bpfilter.compiler.classes import Vectors
from bpfilter.compiler.fold import fold
from bpfilter.compiler.intervals import collect_sets
from bpfilter.compiler.ir import FlatChain
from bpfilter.compiler.layout import (
    ALIGNMENT,
    AXES,
    MAX_ENTRIES,
    MAX_GROUPS,
    U32,
    U64,
    Axis,
    AxisKind,
    ChainTables,
)
from bpfilter.compiler.rows import pack_rows, row_shape, sides_of, state_vectors
from bpfilter.errors import CompileError
from bpfilter.ruleset.fields import Field

MAX_PAIRS = 1 << 18
"""Largest folding table, in pairs of classes."""

MAX_FOLDED_BYTES = 4 << 20
"""Axes stay apart when the rows of their combined classes would take more than this."""

UNPAIRED_WORDS = 1
"""Up to so many words one summary is enough: hardly a block is looked at in vain."""

_OWN_GROUP = frozenset({AxisKind.TRIE4, AxisKind.BOUNDS6})


@dataclass(slots=True)
class _Group:
    """Axes folded so far, and the vectors of their combined classes."""

    members: list[int]
    vectors: Vectors
    open: bool


@dataclass(slots=True)
class _Builder:
    """Accumulates the chain's arrays; bases are positions in them."""

    row_bytes: int
    ids: list[U32] = field(default_factory=list)
    bounds: list[U64] = field(default_factory=list)
    macs: dict[int, int] = field(default_factory=dict)
    axes: list[Axis] = field(default_factory=list)
    groups: list[_Group] = field(default_factory=list)
    ids_used: int = 0
    bounds_used: int = 0

    def add(self, axis: FieldAxis) -> None:
        base = self._append(axis.ids)
        placed = Axis(
            axis.field,
            axis.kind,
            base,
            axis.size,
            axis.vectors.classes,
            lists_base=axis.lists_base,
        )
        if axis.bounds is not None:
            count = len(axis.bounds)
            placed = replace(placed, bounds_base=self.bounds_used, bounds_count=count)
            self.bounds.append(axis.bounds)
            self.bounds_used += count
        if axis.macs is not None:
            self.macs.update(axis.macs)
        group = self.groups[-1] if self.groups and self.groups[-1].open else None
        folded = None if group is None or axis.kind in _OWN_GROUP else self._fold(group, axis)
        if group is None or folded is None:
            is_open = axis.kind not in _OWN_GROUP
            self.groups.append(_Group([len(self.axes)], axis.vectors, is_open))
        else:
            table, group.vectors = folded
            group.members.append(len(self.axes))
            combine_base = self._append(table)
            placed = replace(placed, combine=True, combine_base=combine_base)
        self.axes.append(placed)

    def _fold(self, group: _Group, axis: FieldAxis) -> tuple[U32, Vectors] | None:
        if group.vectors.classes * axis.vectors.classes > MAX_PAIRS:
            return None
        table, vectors = fold(group.vectors, axis.vectors)
        if vectors.classes * self.row_bytes > MAX_FOLDED_BYTES:
            return None
        return table.astype(np.uint32), vectors

    def _append(self, ids: U32) -> int:
        """Begins with a cache line, so that no list of a trie lies across two."""
        base = self.ids_used
        self.ids.append(np.pad(ids, (0, -len(ids) % ALIGNMENT)))
        self.ids_used += len(self.ids[-1])
        return base


def build_tables(flat: FlatChain) -> ChainTables:
    """Compile a flat chain into tables; equal chains give equal tables.

    Raises CompileError past MAX_ENTRIES entries or MAX_GROUPS groups of classes.
    """
    entries = flat.entries
    if len(entries) > MAX_ENTRIES:
        raise CompileError(
            f"{flat.table}/{flat.chain} flattens to {len(entries)} entries, more than "
            f"{MAX_ENTRIES}",
            hint="merge rules into sets, or move them out of chains that are jumped to often",
        )
    builder = _Builder(row_bytes=8 * sum(row_shape(len(entries))))
    sets = collect_sets(entries)
    for name in AXES:
        if name in sets:
            builder.add(field_axis(name, sets[name], flat.space))
    if len(builder.groups) > MAX_GROUPS:
        raise CompileError(
            f"{flat.table}/{flat.chain} tells apart too many combinations of small fields",
            hint="rules that test many fields at once with many values each belong in ipsets",
        )
    return _finish(flat, builder)


def _finish(flat: FlatChain, builder: _Builder) -> ChainTables:
    states = flat.state_classes()
    vectors = [group.vectors for group in builder.groups]
    sides = _sides(flat, builder)
    vectors.append(state_vectors(flat.entries, states))
    packed = pack_rows(vectors, len(flat.entries), sides)
    axes = list(builder.axes)
    for group, row_base in zip(builder.groups, packed.bases, strict=False):
        for member in group.members[:-1]:
            axes[member] = replace(axes[member], ends_group=False)
        axes[group.members[-1]] = replace(axes[group.members[-1]], row_base=row_base)
    return ChainTables(
        flat=flat,
        axes=tuple(axes),
        state_classes=states,
        state_row_base=packed.bases[-1],
        summary_words=packed.summary_words,
        ids=np.concatenate([np.zeros(0, np.uint32), *builder.ids]),
        bounds=np.concatenate([np.zeros((0, 2), np.uint64), *builder.bounds]),
        rows=packed.rows,
        parts=packed.parts,
        blocks=packed.blocks,
        ops=np.array([e.kind << 28 | e.argument for e in flat.entries], np.uint32),
        macs=dict(builder.macs),
        sides=sides,
    )


def _sides(flat: FlatChain, builder: _Builder) -> npt.NDArray[np.uint8]:
    """Of a chain that is to be paired: a long one that asks for both addresses."""
    first = [axis.field for axis in builder.axes[:2]]
    long = row_shape(len(flat.entries))[0] > UNPAIRED_WORDS
    if not long or first != [Field.SOURCE, Field.DESTINATION]:
        return np.zeros(0, np.uint8)
    if any(len(group.members) > 1 for group in builder.groups[:2]):
        return np.zeros(0, np.uint8)
    return sides_of(flat.entries)
