"""From one field's sets to its axis: the array that maps a value to a class id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpfilter.compiler.classes import Vectors, field_classes
from bpfilter.compiler.intervals import I64, FieldSets, partition
from bpfilter.compiler.ir import Space
from bpfilter.compiler.layout import U32, U64, AxisKind
from bpfilter.compiler.tries import merge_equal, trie4
from bpfilter.errors import CompileError
from bpfilter.ruleset.fields import Family, Field, field_bits

_ADDRESSES = (Field.SOURCE, Field.DESTINATION)
_INTERFACES = (Field.IN_INTERFACE, Field.OUT_INTERFACE)
_MAX_MACS = 1 << 16


@dataclass(frozen=True, slots=True)
class FieldAxis:
    """One field's lookup: `ids` as layout.py describes for `kind`, and the classes' vectors."""

    field: Field
    kind: AxisKind
    size: int
    ids: U32
    vectors: Vectors
    bounds: U64 | None = None
    lists_base: int = 0
    macs: Mapping[int, int] | None = None


def field_axis(field: Field, sets: FieldSets, space: Space) -> FieldAxis:
    """The axis of one field that some entry constrains.

    Raises CompileError if the rules tell apart more MAC addresses than a hash map should hold.
    """
    size = axis_size(field, space)
    cut = partition(sets.sets, size)
    classes, vectors = field_classes(cut, sets)
    if field in _ADDRESSES and space.family is Family.IPV4:
        trie = trie4(cut.starts, classes)
        ids = trie.ids
        return FieldAxis(field, AxisKind.TRIE4, len(ids), ids, vectors, lists_base=trie.lists_base)
    if field in _ADDRESSES:
        starts, merged = merge_equal(cut.starts, classes)
        ids = merged.astype(np.uint32)
        return FieldAxis(field, AxisKind.BOUNDS6, len(ids), ids, vectors, bounds=starts)
    lows = cut.starts[:, 1].astype(np.int64)
    if field is Field.MAC_SOURCE:
        macs, ids = _mac_values(lows, classes, size)
        return FieldAxis(field, AxisKind.MAC, len(ids), ids, vectors, macs=macs)
    lengths = np.diff(np.append(lows, size))
    ids = np.repeat(classes, lengths).astype(np.uint32)
    return FieldAxis(field, AxisKind.DIRECT, size, ids, vectors)


def axis_size(field: Field, space: Space) -> int:
    """How many values the field can take in this chain."""
    if field in _INTERFACES:
        return len(space.interfaces)
    if field is Field.MASKS:
        return 1 << len(space.masks)
    return 1 << field_bits(field, space.family)


def _mac_values(lows: I64, classes: I64, size: int) -> tuple[dict[int, int], U32]:
    """Number the addresses whose class is not that of nearly all others; 0 is "any other"."""
    lengths = np.diff(np.append(lows, size))
    other = int(classes[int(np.argmax(lengths))])
    named = np.flatnonzero(classes != other)
    if int(lengths[named].sum()) > _MAX_MACS:
        raise CompileError(
            f"the rules tell apart more than {_MAX_MACS} MAC addresses",
            hint="match MAC addresses through an ipset",
        )
    macs: dict[int, int] = {}
    ids = [other]
    for interval in named.tolist():
        for address in range(lows[interval], lows[interval] + lengths[interval]):
            macs[int(address)] = len(ids)
            ids.append(int(classes[interval]))
    return macs, np.array(ids, np.uint32)
