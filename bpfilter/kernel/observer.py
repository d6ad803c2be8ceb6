"""Netfilter links just before and just after the filter chains: the lab's oracle.

They never change a verdict. They live as long as the `Observer`, in the network namespace of the
thread that attached them, and need Linux 6.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType

import numpy as np

from bpfilter.kernel import netfilter
from bpfilter.kernel.arrays import MappedArray
from bpfilter.kernel.libbpf import BpfObject
from bpfilter.kernel.netfilter import Hook as Hook
from bpfilter.kernel.probe import require
from bpfilter.kernel.program import RECORDS, TEMPLATES
from bpfilter.ruleset.fields import Family

BEFORE_FILTER, AFTER_FILTER = -1, 1

SEEN = np.dtype(
    [
        ("before", "<u4"),
        ("after", "<u4"),
        ("mark_before", "<u4"),
        ("mark_after", "<u4"),
        ("states", "<u4"),
        ("hook", "<u4"),
        ("length", "<u4"),
        ("reserved", "<u4"),
    ]
)
"""One record per IPv4 ID or low 16 bits of the IPv6 flow label.

`before`, `after`: packets seen at either side; `mark_*`: of the last one; `states`: bits of
`State`, all that were seen; `length`: what iptables counts as bytes.
"""


class Observer:
    """Attached links and their records; a context manager."""

    def __init__(self, loaded: BpfObject) -> None:
        self._object = loaded
        self._stack = ExitStack()
        self._stack.callback(loaded.close)
        self._records = MappedArray(loaded.map_fd("seen"), SEEN, RECORDS)
        self._stack.callback(self._records.close)

    @classmethod
    def attach(cls, families: Iterable[Family], hooks: Iterable[Hook]) -> Observer:
        """Watch these hooks in this thread's network namespace; KernelError leaves nothing.

        Two observers cannot watch one hook: a priority holds one link (EBUSY).
        """
        require("BPF_NETFILTER")
        observer = cls(BpfObject.loaded(TEMPLATES / "observer.bpf.o", _as_netfilter))
        try:
            chosen = [(family, hook) for family in families for hook in hooks]
            for family, hook in chosen:
                for name, priority in (
                    ("before_filter", BEFORE_FILTER),
                    ("after_filter", AFTER_FILTER),
                ):
                    fd = observer._object.program_fd(name)
                    netfilter.closing(observer._stack, netfilter.link(fd, family, hook, priority))
        except BaseException:
            observer.close()
            raise
        return observer

    def records(self) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
        """A copy of all records; the index is the packet's number."""
        return self._records.cells.copy()

    def clear(self) -> None:
        """Forget all records."""
        self._records.cells[:] = np.zeros(1, SEEN)

    def close(self) -> None:
        """Detach everything."""
        self._stack.close()

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _as_netfilter(loaded: BpfObject) -> None:
    netfilter.as_netfilter(loaded, ("before_filter", "after_filter"))
