"""Folding two groups of classes into one: recursive flow classification (Gupta & McKeown 1999)."""

from __future__ import annotations

import numpy as np

from bpfilter.compiler.classes import Vectors, distinct_blocks, exact_classes
from bpfilter.compiler.intervals import I64
from bpfilter.compiler.layout import BLOCK_WORDS, U64


def fold(left: Vectors, right: Vectors) -> tuple[I64, Vectors]:
    """Classes of the pairs (left class, right class), numbered by distinct ANDed vectors.

    Returns i64[left.classes * right.classes], the left class being the slower index.
    """
    stripes = left.refs.shape[0]
    blocks: list[U64] = []
    parts: list[tuple[I64, I64, I64]] = []
    hashes = np.zeros((left.classes, right.classes), np.uint64)
    secrets = np.random.default_rng(stripes).integers(1, 1 << 63, (stripes,), np.uint64)
    base = 0
    for stripe in range(stripes):
        of_left, left_index = np.unique(left.refs[stripe], return_inverse=True)
        of_right, right_index = np.unique(right.refs[stripe], return_inverse=True)
        both = left.blocks[of_left][:, None, :] & right.blocks[of_right][None, :, :]
        distinct, ids = distinct_blocks(both.reshape(-1, BLOCK_WORDS))
        table = (ids + base).reshape(len(of_left), len(of_right))
        base += len(distinct)
        blocks.append(distinct)
        parts.append((table, left_index, right_index))
        mixed = (table.astype(np.uint64) + np.uint64(1)) * (secrets[stripe] | np.uint64(1))
        hashes ^= (mixed ^ (mixed >> np.uint64(31)))[left_index][:, right_index]

    def refs(stripe: int) -> I64:
        table, left_index, right_index = parts[stripe]
        return table[left_index][:, right_index].reshape(-1)

    classes, class_refs = exact_classes(hashes.reshape(-1).view(np.int64), stripes, refs)
    return classes, Vectors(class_refs, np.concatenate(blocks))
