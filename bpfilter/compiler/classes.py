"""Class ids: elementary intervals that the same entries hold share one, and one bit vector.

Candidates come from hashing (one random u64 per set, XORed at every bound); they are then
compared exactly, so that a hash collision costs time and never an answer. Vectors are kept as
references to distinct blocks of 512 entries (aggregated bit vectors: Baboescu & Varghese 2001).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.intervals import I64, FieldSets, Partition
from bpfilter.compiler.layout import BLOCK_WORDS, U32, U64

STRIPE_ENTRIES = BLOCK_WORDS * 64
_MIX = np.arange(1, 2 * BLOCK_WORDS, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_SEED = 0x5DEECE66D


@dataclass(frozen=True, slots=True)
class Vectors:
    """One bit vector of entries per class.

    `refs`: u32[stripes, classes], indices into `blocks`: u64[n, 8]; stripe s covers the entries
    512s … 512s + 511.
    """

    refs: U32
    blocks: U64

    @property
    def classes(self) -> int:
        return int(self.refs.shape[1])


StripeRefs = Callable[[int], npt.NDArray[np.integer]]
"""The block references of all things to be classed, in one stripe."""


def stripe_count(entries: int) -> int:
    return -(-entries // STRIPE_ENTRIES)


def distinct_blocks(blocks: U64) -> tuple[U64, I64]:
    """The distinct rows of u64[n, ≤ 8], and for each row the index of its equal. Exact."""
    mixed = (blocks ^ (blocks >> np.uint64(29))) * _MIX[: blocks.shape[1]]
    hashes = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(32)), axis=1)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    distinct = blocks[first]
    if (distinct[inverse] == blocks).all():
        return distinct, inverse.astype(np.int64)
    distinct, inverse = np.unique(blocks, axis=0, return_inverse=True)
    return distinct, inverse.reshape(-1).astype(np.int64)


def exact_classes(candidate: I64, stripes: int, refs: StripeRefs) -> tuple[I64, U32]:
    """Split candidate classes until all members of each have equal references.

    Returns the class of each thing, numbered by first member, and u32[stripes, classes], the
    references of each class.
    """
    _, first, classes = np.unique(candidate, return_index=True, return_inverse=True)
    for stripe in range(stripes):
        row = refs(stripe)
        if not (row[first][classes] == row).all():
            key = classes.astype(np.int64) * (int(row.max()) + 1) + row
            _, first, classes = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first = first[order]
    result = np.empty((stripes, len(first)), np.uint32)
    for stripe in range(stripes):
        result[stripe] = refs(stripe)[first]
    return rank[classes], result


def field_classes(cut: Partition, sets: FieldSets) -> tuple[I64, Vectors]:
    """The class of every elementary interval, and the classes' bit vectors."""
    count = len(cut.starts)
    stripes = stripe_count(len(sets.of_entry))
    keys, content = _changes(cut, sets, count, stripes)
    blocks, ids = distinct_blocks(content)
    bounds = np.searchsorted(keys, np.arange(stripes + 1) * count)

    def refs(stripe: int) -> I64:
        part = slice(bounds[stripe], bounds[stripe + 1])
        lengths = np.diff(np.append(keys[part], (stripe + 1) * count))
        return np.repeat(ids[part], lengths)

    classes, class_refs = exact_classes(_hashes(cut, count), stripes, refs)
    return classes, Vectors(class_refs, blocks)


def _hashes(cut: Partition, count: int) -> I64:
    secret = np.random.default_rng(_SEED).integers(0, 1 << 63, cut.sets + 1, np.int64)
    hashes = np.zeros(count, np.int64)
    np.bitwise_xor.at(hashes, cut.toggle_at, secret[cut.toggle_set])
    return np.bitwise_xor.accumulate(hashes)


def _changes(cut: Partition, sets: FieldSets, count: int, stripes: int) -> tuple[I64, U64]:
    """Where a stripe's block changes (stripe * count + interval, ascending), and to what.

    Every stripe has a change at interval 0.
    """
    owner, stripe, masks = _group_entries(sets, cut.sets)
    first = np.searchsorted(cut.toggle_set, np.arange(cut.sets + 2))
    lengths = (first[1:] - first[:-1])[owner]
    group = np.repeat(np.arange(len(owner)), lengths)
    offset = np.arange(len(group)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = cut.toggle_at[first[owner][group] + offset]
    keys = np.concatenate([np.arange(stripes) * count, stripe[group] * count + at])
    toggled = np.concatenate([np.zeros((stripes, BLOCK_WORDS), np.uint64), masks[group]])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    content = np.bitwise_xor.accumulate(toggled[order], axis=0)
    # What the stripes before left open is taken out again, so that each starts from nothing.
    starts = np.searchsorted(keys, np.arange(1, stripes) * count)
    carried = np.concatenate([np.zeros((1, BLOCK_WORDS), np.uint64), content[starts - 1]])
    content ^= np.repeat(carried, np.diff([0, *starts, len(keys)]), axis=0)
    last = np.append(keys[1:] != keys[:-1], True)
    return keys[last], content[last]


def _group_entries(sets: FieldSets, full: int) -> tuple[I64, I64, U64]:
    """Entries of one stripe that name the same set, as one: (set, stripe, mask u64[n, 8])."""
    entries = np.arange(len(sets.of_entry), dtype=np.int64)
    key = (entries // STRIPE_ENTRIES) * (full + 1) + sets.of_entry
    groups, member = np.unique(key, return_inverse=True)
    masks = np.zeros((len(groups), BLOCK_WORDS), np.uint64)
    bit = np.uint64(1) << (entries & 63).astype(np.uint64)
    np.bitwise_or.at(masks, (member, (entries >> 6) % BLOCK_WORDS), bit)
    return groups % (full + 1), groups // (full + 1), masks
