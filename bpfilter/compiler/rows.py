"""Rows: the classes' bit vectors as the program reads them, all groups over one set of parts.

A class of a large set holds few of its entries, and nothing of most parts: a row then takes two
or four bytes for each, and equal parts and blocks are stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.classes import Vectors, distinct_blocks, stripe_count
from bpfilter.compiler.intervals import I64
from bpfilter.compiler.ir import Entry
from bpfilter.compiler.layout import BLOCK_WORDS, PART_BLOCKS, U32, U64, Side
from bpfilter.ruleset.fields import Field

U8 = npt.NDArray[np.uint8]
_SAMPLE = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """`rows`, `parts`, `blocks` as layout.py has them; group g's rows begin at `bases[g]`."""

    rows: U64
    parts: U64
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
    """All groups' rows over one deduplicated array of parts and one of blocks.

    The first part and the first block are all zero; parts stand in the order in which the rows name
    them, blocks in that of the parts, so that those of one row are close by. `sides` of a paired
    chain: groups 0 and 1 are its addresses; empty for any other.
    """
    words = row_shape(entries)[0]
    cut = [[_distinct_refs(group.refs, word) for word in range(words)] for group in groups]
    blocks, references = _merge_blocks(groups, [[refs for refs, _ in own] for own in cut])
    summaries = 2 if len(sides) else 1
    made = [np.zeros((1, summaries + PART_BLOCKS // 2), np.uint64)]
    named = []
    for number, own in enumerate(cut):
        shown: list[U64 | None] = [None]
        if len(sides) and number < 2:
            shown = [_bits_of(sides == side) for side in (Side(number), Side.BOTH)]
        named.append(np.zeros((groups[number].classes, words), np.int64))
        for word, (_, of_row) in enumerate(own):
            named[-1][:, word] = of_row + sum(map(len, made))
            made.append(_parts(blocks, references[number][word], word, shown, summaries))
    parts, numbers = distinct_blocks(np.concatenate(made))
    order, rank = _by_first_use(len(parts), int(numbers[0]), [numbers[own] for own in named])
    parts = parts[order]
    rows = [_rows(parts, rank[numbers[own]], summaries) for own in named]
    bases = np.cumsum([0, *map(len, rows)]).tolist()
    order, rank = _by_first_use(len(blocks), 0, [parts[:, summaries:].view("<u4")])
    parts[:, summaries:] = rank[parts[:, summaries:].view("<u4")].view("<u8")
    return Rows(np.concatenate(rows), parts, blocks[order], tuple(bases[:-1]), words)


def _distinct_refs(refs: U32, word: int) -> tuple[U32, I64]:
    """The distinct references of one summary word, u32[n, ≤ 8], and which are each class's.

    Most classes have the same, those of a word with nothing: they are not sorted.
    """
    own = np.zeros((refs.shape[1], PART_BLOCKS), "<u4")
    stripes = refs[word * PART_BLOCKS : (word + 1) * PART_BLOCKS]
    own[:, : len(stripes)] = stripes.T
    whole = own.view("<u8").astype(np.uint64, copy=False)
    sample = whole[:: max(1, len(whole) // _SAMPLE)]
    often, counts = np.unique(sample, axis=0, return_counts=True)
    usual = often[np.argmax(counts)][None]
    others = np.flatnonzero((whole != usual).any(axis=1))
    distinct, numbers = distinct_blocks(whole[others])
    of_row = np.zeros(len(whole), np.int64)
    of_row[others] = numbers + 1
    found = np.concatenate([usual, distinct]).view("<u4")
    return found[:, : len(stripes)], of_row


def _parts(blocks: U64, refs: U32, word: int, shown: Sequence[U64 | None], summaries: int) -> U64:
    """Parts of one summary word that refer to these blocks."""
    parts = np.zeros((len(refs), summaries + PART_BLOCKS // 2), np.uint64)
    named = np.zeros((len(refs), PART_BLOCKS), "<u4")
    named[:, : refs.shape[1]] = refs
    parts[:, summaries:] = named.view("<u8")
    for position, mask in enumerate(shown):
        marks = np.zeros((len(refs), PART_BLOCKS), np.uint8)
        for stripe in range(refs.shape[1]):
            leaves = blocks[refs[:, stripe]]
            if mask is not None:
                leaves &= mask[word * PART_BLOCKS + stripe]
            marks[:, stripe] = np.packbits(leaves != 0, axis=1, bitorder="little")[:, 0]
        parts[:, position] = marks.view("<u8")[:, 0]
    return parts


def _rows(parts: U64, named: U32, summaries: int) -> U64:
    """Tops and references of rows that name these parts."""
    rows = np.zeros((len(named), summaries + -(-named.shape[1] // 2)), np.uint64)
    for position in range(summaries):
        top = np.zeros((len(named), 64), np.bool_)
        top[:, : named.shape[1]] = (parts[:, position] != 0)[named]
        rows[:, position] = np.packbits(top, axis=1, bitorder="little").view("<u8")[:, 0]
    even = np.zeros((len(named), 2 * (rows.shape[1] - summaries)), "<u4")
    even[:, : named.shape[1]] = named
    rows[:, summaries:] = even.view("<u8")
    return rows


def _bits_of(chosen: npt.NDArray[np.bool_]) -> U64:
    """Entries as bits: u64[stripes, 8]."""
    padded = np.zeros(stripe_count(len(chosen)) * BLOCK_WORDS * 64, np.bool_)
    padded[: len(chosen)] = chosen
    words = np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)
    return words.reshape(-1, BLOCK_WORDS)


def _merge_blocks(
    groups: Sequence[Vectors], references: Sequence[Sequence[U32]]
) -> tuple[U64, list[list[U32]]]:
    """One array of distinct blocks, the first all zero, and the references to it."""
    used = [np.zeros((1, BLOCK_WORDS), np.uint64)]
    places = []
    for group, named in zip(groups, references, strict=True):
        referenced = np.zeros(len(group.blocks), np.bool_)
        for refs in named:
            referenced[refs] = True
        places.append(np.cumsum(referenced) - 1 + sum(map(len, used)))
        used.append(group.blocks[referenced])
    blocks, numbers = distinct_blocks(np.concatenate(used))
    order, rank = _by_first_use(len(blocks), int(numbers[0]), [numbers])
    return blocks[order], [
        [rank[numbers[place[refs]]] for refs in named]
        for place, named in zip(places, references, strict=True)
    ]


def _by_first_use(count: int, zero: int, references: Sequence[I64 | U32]) -> tuple[I64, U32]:
    """Numbers in the order of their first use, `zero` before all; and the place of each."""
    uses = np.concatenate([np.array([zero]), *(refs.reshape(-1) for refs in references)])
    first = np.full(count, len(uses))
    first[uses[::-1]] = np.arange(len(uses))[::-1]
    order = np.argsort(first)
    rank = np.empty(count, np.uint32)
    rank[order] = np.arange(count, dtype=np.uint32)
    return order, rank
