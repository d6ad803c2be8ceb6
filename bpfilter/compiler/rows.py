"""Rows: the classes' bit vectors as the program reads them, all groups over one set of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.classes import Vectors, distinct_blocks, stripe_count
from bpfilter.compiler.intervals import I64
from bpfilter.compiler.ir import Entry
from bpfilter.compiler.layout import BLOCK_WORDS, U32, U64, Side
from bpfilter.ruleset.fields import Field

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rows:
    """`rows`: u64[n, words of summaries and references]; group g begins at `bases[g]`."""

    rows: U64
    blocks: U64
    bases: tuple[int, ...]
    summary_words: int


def row_shape(entries: int) -> tuple[int, int]:
    """(words of one summary, words of the references) of a row over that many entries."""
    leaf_words = -(-entries // 64)
    return -(-leaf_words // 64), -(-stripe_count(entries) // 2)


def sides_of(entries: Sequence[Entry]) -> U8:
    """The side of every entry: which of the two addresses it asks for."""
    source = np.array([Field.SOURCE in entry.box for entry in entries])
    destination = np.array([Field.DESTINATION in entry.box for entry in entries])
    both = np.where(source & destination, Side.BOTH, Side.DESTINATION)
    return np.where(destination, both, Side.SOURCE).astype(np.uint8)


def state_vectors(entries: Sequence[Entry], state_classes: Sequence[int]) -> Vectors:
    """One vector per class of states: the entries that apply in it.

    Fragments are punted before any table is read, so entries that want one apply in no state.
    """
    stripes = stripe_count(len(entries))
    states = np.zeros(stripes * BLOCK_WORDS * 64, np.uint8)
    states[: len(entries)] = [
        entry.states if Field.FRAGMENT not in entry.box or 0 in entry.box[Field.FRAGMENT] else 0
        for entry in entries
    ]
    vectors = np.stack([states & mask != 0 for mask in state_classes])
    packed = np.packbits(vectors, axis=1, bitorder="little").view("<u8")
    blocks = packed.reshape(-1, BLOCK_WORDS).astype(np.uint64)
    refs = np.arange(len(blocks), dtype=np.uint32).reshape(len(state_classes), stripes)
    return Vectors(refs.T.copy(), blocks)


def pack_rows(groups: Sequence[Vectors], entries: int, sides: U8) -> Rows:
    """All groups' rows over one deduplicated array of blocks, whose first is all zero.

    Blocks stand in the order in which the rows name them, so that those of one row are close by.
    `sides` of a paired chain: groups 0 and 1 are its addresses; empty for any other.
    """
    summary_words, reference_words = row_shape(entries)
    span = summary_words * (2 if len(sides) else 1)
    blocks, references = _merge_blocks(groups)
    rows = np.zeros((sum(group.classes for group in groups), span + reference_words), np.uint64)
    bases = []
    base = 0
    for number, refs in enumerate(references):
        part = slice(base, base + len(refs))
        shown: list[U64 | None] = [None]
        if len(sides) and number < 2:
            shown = [_bits_of(sides == side) for side in (Side(number), Side.BOTH)]
        for position, mask in enumerate(shown):
            first = position * summary_words
            summaries = rows[part, first : first + summary_words].view(np.uint8)
            summaries[:, : refs.shape[1]] = _marks(blocks, refs, mask)
        even = np.zeros((len(refs), 2 * reference_words), "<u4")
        even[:, : refs.shape[1]] = refs
        rows[part, span:] = even.view("<u8")
        bases.append(base)
        base += len(refs)
    return Rows(rows, blocks, tuple(bases), summary_words)


def _bits_of(chosen: npt.NDArray[np.bool_]) -> U64:
    """Entries as bits: u64[stripes, 8]."""
    padded = np.zeros(stripe_count(len(chosen)) * BLOCK_WORDS * 64, np.bool_)
    padded[: len(chosen)] = chosen
    words = np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)
    return words.reshape(-1, BLOCK_WORDS)


def _marks(blocks: U64, refs: U32, mask: U64 | None) -> U8:
    """Per row and stripe, which of the eight leaf words have a bit, of those of `mask`."""
    if mask is None:
        marks: U8 = np.packbits(blocks != 0, axis=1, bitorder="little").reshape(-1)[refs]
        return marks
    result = np.empty(refs.shape, np.uint8)
    of_block = np.empty(len(blocks), np.uint8)
    for stripe, chosen in enumerate(mask):
        column = refs[:, stripe]
        named = np.zeros(len(blocks), np.bool_)
        named[column] = True
        used = np.flatnonzero(named)
        marks = np.packbits(blocks[used] & chosen != 0, axis=1, bitorder="little")
        of_block[used] = marks.reshape(-1)
        result[:, stripe] = of_block[column]
    return result


def _merge_blocks(groups: Sequence[Vectors]) -> tuple[U64, list[U32]]:
    """One array of distinct blocks, and each group's references to it: u32[classes, stripes]."""
    used = [np.zeros((1, BLOCK_WORDS), np.uint64)]
    named = []
    for group in groups:
        referenced = np.zeros(len(group.blocks), np.bool_)
        referenced[group.refs] = True
        offset = sum(map(len, used))
        named.append((np.cumsum(referenced) - 1 + offset).astype(np.uint32)[group.refs].T)
        used.append(group.blocks[referenced])
    blocks, numbers = distinct_blocks(np.concatenate(used))
    zero = int(numbers[0])
    order = _by_first_use(len(blocks), zero, [numbers[own] for own in named])
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    return blocks[order], [rank[numbers[own]] for own in named]


def _by_first_use(count: int, zero: int, references: Sequence[I64]) -> I64:
    """Block numbers in the order of their first use, the zero block before all."""
    uses = np.concatenate([np.array([zero]), *(refs.reshape(-1) for refs in references)])
    first = np.zeros(count, np.int64)
    first[uses[::-1]] = np.arange(len(uses))[::-1]
    return np.argsort(first)
