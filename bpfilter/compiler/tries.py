"""IPv4 addresses to class ids by arrays: one of 2^16, then two of 2^8 where a prefix is mixed."""

from __future__ import annotations

import numpy as np

from bpfilter.compiler.intervals import I64
from bpfilter.compiler.layout import TRIE_POINTER, U32, U64


def merge_equal(starts: U64, classes: I64) -> tuple[U64, I64]:
    """Join neighbouring intervals of one class."""
    fresh = np.ones(len(classes), np.bool_)
    fresh[1:] = classes[1:] != classes[:-1]
    return starts[fresh], classes[fresh]


def trie4(starts: U64, classes: I64) -> U32:
    """The `TRIE4` array of layout.py for intervals that begin at `starts` (u64[n, 2])."""
    starts, classes = merge_equal(starts, classes)
    first = starts[:, 1].astype(np.int64)

    def class_at(addresses: I64) -> I64:
        return classes[np.searchsorted(first, addresses, side="right") - 1]

    mixed16 = np.unique(first[first & 0xFFFF != 0] >> 16)
    mixed24 = np.unique(first[first & 0xFF != 0] >> 8)
    bytes_ = np.arange(256, dtype=np.int64)
    top = class_at(np.arange(1 << 16, dtype=np.int64) << 16)
    top[mixed16] = TRIE_POINTER | np.arange(len(mixed16))
    middle_addresses = (mixed16[:, None] << 16) | (bytes_ << 8)
    middle = class_at(middle_addresses.reshape(-1))
    parent = np.searchsorted(mixed16, mixed24 >> 8)
    middle[parent * 256 + (mixed24 & 0xFF)] = TRIE_POINTER | (
        len(mixed16) + np.arange(len(mixed24))
    )
    leaves = class_at(((mixed24[:, None] << 8) | bytes_).reshape(-1))
    return np.concatenate([top, middle, leaves]).astype(np.uint32)
