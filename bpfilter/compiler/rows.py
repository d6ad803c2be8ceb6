"""Rows: the classes' bit vectors as the program reads them, all groups over one set of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bpfilter.compiler.classes import Vectors, distinct_blocks, stripe_count
from bpfilter.compiler.ir import Entry
from bpfilter.compiler.layout import BLOCK_WORDS, U64
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
    """All groups' rows over one deduplicated array of blocks, whose first is all zero."""
    summary_words, row_words = row_shape(entries)
    zero = np.zeros((1, BLOCK_WORDS), np.uint64)
    used = []
    locals_ = []
    for group in groups:
        referenced = np.zeros(len(group.blocks), np.bool_)
        referenced[group.refs] = True
        used.append(group.blocks[referenced])
        local = (np.cumsum(referenced) - 1).astype(np.uint32)
        locals_.append(local[group.refs])
    blocks, numbers = distinct_blocks(np.concatenate([zero, *used]))
    blocks, numbers = _zero_first(blocks, numbers)
    marks = np.packbits(blocks != 0, axis=1, bitorder="little").reshape(-1)
    rows = np.zeros((sum(group.classes for group in groups), row_words), np.uint64)
    summaries = rows[:, :summary_words].view(np.uint8) if len(rows) else rows.view(np.uint8)
    references = rows[:, summary_words:]
    bases = []
    base = 0
    offset = 1
    for group, own, local in zip(groups, used, locals_, strict=True):
        refs = numbers[offset : offset + len(own)].astype(np.uint32)[local].T
        part = slice(base, base + group.classes)
        summaries[part, : refs.shape[1]] = marks[refs]
        even = np.zeros((group.classes, 2 * references.shape[1]), "<u4")
        even[:, : refs.shape[1]] = refs
        references[part] = even.view("<u8")
        bases.append(base)
        base += group.classes
        offset += len(own)
    return Rows(rows, blocks, tuple(bases), summary_words)


def _zero_first(
    blocks: U64, numbers: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> tuple[U64, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Exchange block 0 with the zero block, which `numbers[0]` names."""
    at = int(numbers[0])
    order = np.arange(len(blocks))
    order[0], order[at] = at, 0
    return blocks[order], order[numbers]
