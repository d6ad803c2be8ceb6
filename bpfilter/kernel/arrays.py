"""Filling and reading array maps through shared memory: no system call per element."""

from __future__ import annotations

import mmap

import numpy as np


def fill(fd: int, content: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    """Copy `content` to the front of a memory-mappable array map."""
    if not content.nbytes:
        return
    with mmap.mmap(fd, content.nbytes) as memory:
        memory[:] = np.ascontiguousarray(content).tobytes()


class MappedArray:
    """An array map seen as a numpy array of `dtype`; reads and writes are the map's own."""

    def __init__(self, fd: int, dtype: np.dtype[np.void], entries: int) -> None:
        self._memory = mmap.mmap(fd, dtype.itemsize * entries)
        self._dtype = dtype

    @property
    def cells(self) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
        """The live elements; let go of it before `close`."""
        return np.frombuffer(self._memory, self._dtype)

    def close(self) -> None:
        self._memory.close()
