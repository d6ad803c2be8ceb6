"""The bits of the packet mark that carry a code from the program to the dispatch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MarkField:
    """A contiguous group of bits of `skb->mark`: `mask == max_code << shift`."""

    mask: int
    shift: int

    def __post_init__(self) -> None:
        low = self.mask >> self.shift
        if not 0 < self.mask < 1 << 32 or low & (low + 1) or low << self.shift != self.mask:
            raise ValueError(f"not a contiguous field: mask {self.mask:#x}, shift {self.shift}")

    @property
    def max_code(self) -> int:
        """The largest code that fits; code 0 means that nothing was decided."""
        return self.mask >> self.shift

    def value(self, code: int) -> int:
        """The code in its place within the mark; ValueError if it does not fit."""
        if not 0 <= code <= self.max_code:
            raise ValueError(f"code {code} does not fit mark field {self.mask:#x}")
        return code << self.shift


DEFAULT_MARK = MarkField(0xFF000000, 24)
