"""Rows: the classes' bit vectors as the program reads them, all groups over one set of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bpfilter.compiler.classes import Vectors, distinct_blocks, stripe_count
from bpfilter.compiler.intervals import I64
from bpfilter.compiler.ir import Entry
from bpfilter.compiler.layout import BLOCK_WORDS, U32, U64
from bpfilter.ruleset.fields import Field


@dataclass(frozen=True, slots=True)
class Rows:
    """`rows`: u64[n, summary_words + reference words]; group g begins at `bases[g]`."""

    rows: U64
    blocks: U64
    bases: tuple[int, ...]
    summary_words: int


def row_shape(entries: int) -> tuple[int, int]:
    """(summary words, words in all) of a row over that many entries."""
    leaf_words = -(-entries // 64)
    summary_words = -(-leaf_words // 64)
    return summary_words, summary_words + -(-stripe_count(entries) // 2)


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


def pack_rows(groups: Sequence[Vectors], entries: int) -> Rows:
    """All groups' rows over one deduplicated array of blocks, whose first is all zero.

    Blocks stand in the order in which the rows name them, so that those of one row are close by.
    """
    summary_words, row_words = row_shape(entries)
    blocks, references = _merge_blocks(groups)
    marks = np.packbits(blocks != 0, axis=1, bitorder="little").reshape(-1)
    rows = np.zeros((sum(group.classes for group in groups), row_words), np.uint64)
    summaries = rows[:, :summary_words].view(np.uint8)
    bases = []
    base = 0
    for refs in references:
        part = slice(base, base + len(refs))
        summaries[part, : refs.shape[1]] = marks[refs]
        even = np.zeros((len(refs), 2 * (row_words - summary_words)), "<u4")
        even[:, : refs.shape[1]] = refs
        rows[part, summary_words:] = even.view("<u8")
        bases.append(base)
        base += len(refs)
    return Rows(rows, blocks, tuple(bases), summary_words)


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
