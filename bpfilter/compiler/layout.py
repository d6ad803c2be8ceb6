"""The compiled form of one chain, laid out as the BPF program reads it.

A packet is classified so (per chain, called *slot* in the program):

1. Every used axis maps its field's value to a class id.
   - `DIRECT`: class = ids[base + value] for value < size (a value ≥ size cannot occur).
   - `TRIE4` (IPv4 addresses a): x = ids[base + (a >> 16)]; while x has bit 31 set and bit 30 not,
     the next x is ids[base + 65536 + (x & 0x3fffffff) * 256 + byte], byte = (a >> 8) & 255, then
     a & 255; the class is the first x without bit 31. If x has both bits, it names a list, the 16
     numbers from ids[base + lists_base + (x & 0x3fffffff) * 16]: eight starts, then eight classes.
     The class is the one whose index is the number of starts 1 … 7 that are not above the bits of a
     which the way to the list has not used (16, or the last 8).
   - `BOUNDS6` (IPv6 addresses): `bounds` holds sorted (high, low) u64 pairs from `bounds_base`,
     the first is (0, 0); class = ids[base + i], i = index of the last bound ≤ the address.
   - `MAC`: v = macs.get(address, 0); class = ids[base + v]; v = 0 is "any other address".
2. Small axes are folded, in AXES order, into service groups: an axis with `combine == 0` starts a
   new group (acc = class); one with `combine == 1` continues it:
   acc = ids[combine_base + acc * classes + class]. SOURCE and DESTINATION are groups of their own.
3. Each group's acc selects a row: rows[row_base + acc]. The state class s selects
   rows[state_row_base + s]. All bit vectors of the chain's entries are ANDed: bit i of the result
   says that entry i holds the packet in that state.
4. A row has `summary_words` parts, one for 4096 entries each. It begins with a top, a u64 whose
   bit p says that part p's summary is not zero; then come u32 references to `parts`, two per u64
   (low half first). Part p begins with its summary, a u64 whose bit w says that leaf word 64p + w
   (of 64 entries) is not zero; then come eight u32 block references, two per u64: reference j is
   the index in `blocks` of the eight leaf words from 64p + 8j. A leaf word is looked at if it is in
   the summaries of all rows' parts, and a part if it is in all tops.
   If the chain is `paired`, every row has a second top behind the first, and every part a second
   summary. Groups 0 and 1 are then the source and the destination, and each entry has a side
   (`sides`, see `Side`): the source row's first summary shows the leaf words of SOURCE entries
   only, the destination row's those of DESTINATION entries, and the second ones those of BOTH. Of
   these two rows a leaf word must be in either first summary or in both second ones; so with tops.
   So rules for any destination do not meet rules for any source, of which large sets are full.
5. ops[i] = kind << 28 | argument, kind as `OpKind`. Walks go as `ir` says. Node transitions:
   start at node `root`; for every state class in order, each ITEM takes edges[(node, item)]
   (missing → node 0), a final ACCEPT, DROP or PUNT takes nodes[node][0, 1 or 2]. PUNT first goes
   back to the node at which this state's walk began. A terminal item ends the walk by itself.
   After the last state, nodes[node][3] is `code | outcome << 8`; node 0 is dead: all zero, PUNT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.ir import FlatChain, Function
from bpfilter.ruleset.fields import Field

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

TRIE_POINTER = 0x80000000
TRIE_LIST = 0x40000000
LIST_INTERVALS = 8
ALIGNMENT = 16  # numbers of `ids` that a list takes
MAX_ENTRIES = 1 << 18
MAX_GROUPS = 8  # service groups plus the two addresses
BLOCK_WORDS = 8
PART_BLOCKS = 8  # one summary word's


class Side(IntEnum):
    """Which address decides whether an entry is a candidate, in a paired chain."""

    SOURCE = 0  # it holds any destination
    DESTINATION = 1  # any source
    BOTH = 2


class AxisKind(IntEnum):
    UNUSED = 0
    DIRECT = 1
    TRIE4 = 2
    BOUNDS6 = 3
    MAC = 4


AXES: tuple[Field, ...] = (
    Field.SOURCE,
    Field.DESTINATION,
    Field.PROTOCOL,
    Field.DESTINATION_PORT,
    Field.SOURCE_PORT,
    Field.TCP_FLAGS,
    Field.ICMP_TYPE,
    Field.IN_INTERFACE,
    Field.OUT_INTERFACE,
    Field.LENGTH,
    Field.TTL,
    Field.TOS,
    Field.MAC_SOURCE,
    Field.PACKET_TYPE,
    Field.SOURCE_TYPE,
    Field.DESTINATION_TYPE,
    Field.MASKS,
)
"""Order of axes in the program's slot configuration; the index is the axis number.
FRAGMENT has no axis: fragments are punted, so its value is 0 wherever a table is consulted."""


class Outcome(IntEnum):
    """What the classifier decided; `PUNT` has no code."""

    PUNT = 0
    ACCEPT = 1
    DROP = 2
    RESIDUAL = 3


@dataclass(frozen=True, slots=True)
class Axis:
    """One used axis. All bases are relative to the chain's own arrays."""

    field: Field
    kind: AxisKind
    base: int
    size: int
    classes: int
    combine: bool = False
    combine_base: int = 0
    bounds_base: int = 0
    bounds_count: int = 0
    lists_base: int = 0
    """Of a `TRIE4`, relative to `base`; its lists reach to `size`, where it has any."""
    row_base: int = 0
    """Of the group this axis is the last member of (rows are looked up once per group)."""
    ends_group: bool = True


@dataclass(frozen=True, slots=True)
class ChainTables:
    """Arrays of one chain, ready to be copied into maps at a base.

    ids: u32[n]; bounds: u64[n, 2] (high, low); rows: u64[n, tops and references]; parts: u64[n,
    summaries + 4]; blocks: u64[n, 8] (part 0 and block 0 are all zero); ops: u32[entries]; macs:
    address → value; sides: u8[entries] of a paired chain, else empty.
    """

    flat: FlatChain
    axes: tuple[Axis, ...]
    state_classes: tuple[int, ...]
    state_row_base: int
    summary_words: int
    ids: U32
    bounds: U64
    rows: U64
    parts: U64
    blocks: U64
    ops: U32
    macs: Mapping[int, int]
    sides: npt.NDArray[np.uint8]

    @property
    def paired(self) -> bool:
        """Whether rows have two tops, and parts two summaries."""
        return len(self.sides) > 0

    @property
    def summaries(self) -> int:
        """Words of a row, and of a part, before its references."""
        return 1 + self.paired

    @property
    def nbytes(self) -> int:
        return int(
            self.ids.nbytes
            + self.bounds.nbytes
            + self.rows.nbytes
            + self.parts.nbytes
            + self.blocks.nbytes
            + self.ops.nbytes
        )


@dataclass(frozen=True, slots=True)
class Transitions:
    """The trie over walks. nodes: u32[n, 4]; node 0 is dead, node 1 the root.

    `functions[node]` is the function that a final node stands for.
    """

    nodes: U32
    edges: Mapping[tuple[int, int], int]
    functions: Mapping[int, Function]
