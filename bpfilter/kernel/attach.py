"""Attaching at TC ingress: a tcx link where the kernel has them (6.6), else a clsact filter.

What others attached is neither replaced nor removed; all programs of an interface run.
"""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from typing import Protocol

from bpfilter.errors import KernelError
from bpfilter.kernel import syscall
from bpfilter.kernel.clsact import Filter

_BEFORE = 1 << 3  # BPF_F_BEFORE without another program: before all
_TCX_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP)


class AttachKind(StrEnum):
    """How a program is attached."""

    TCX = "tcx"
    CLSACT = "clsact"


class Attachment(Protocol):
    """A program at an interface's ingress."""

    @property
    def kind(self) -> AttachKind: ...

    def close(self) -> None:
        """Detach; nothing else at the interface changes."""


class TcxLink:
    """A tcx link; it goes with its last descriptor unless it is pinned."""

    kind = AttachKind.TCX

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Let go of the link; KernelError never."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ClsactFilter:
    """A clsact filter; it outlives this process until `close` or `teardown`."""

    kind = AttachKind.CLSACT

    def __init__(self, index: int, program_fd: int) -> None:
        self._filter: Filter | None = Filter(index, program_fd)

    def close(self) -> None:
        """Remove our filter, and the qdisc if we made it and nobody else uses it."""
        if self._filter is not None:
            self._filter.remove()
            self._filter = None


def attach(program_fd: int, index: int, kind: AttachKind | None = None) -> Attachment:
    """Attach at the interface's TC ingress in this thread's network namespace.

    `kind` forces one way. Raises KernelError and changes nothing if the kernel refuses.
    """
    if kind is not AttachKind.CLSACT:
        try:
            return TcxLink(syscall.link_create(program_fd, index, syscall.BPF_TCX_INGRESS))
        except syscall.KernelCallFailed as error:
            if kind is AttachKind.TCX or error.errno not in _TCX_UNKNOWN:
                raise KernelError(
                    f"cannot attach to interface {index}: {errno.errorcode.get(error.errno)}",
                    hint="does the interface exist in this network namespace?"
                    if error.errno == errno.ENODEV
                    else "tc filter show dev IF ingress says what else is attached",
                ) from None
    return ClsactFilter(index, program_fd)


def attach_first(program_fd: int, index: int) -> TcxLink:
    """Attach at TC ingress before every other program; needs tcx (6.6).

    Raises KernelError and changes nothing if the kernel refuses.
    """
    try:
        link = syscall.link_create(program_fd, index, syscall.BPF_TCX_INGRESS, flags=_BEFORE)
    except syscall.KernelCallFailed as error:
        raise KernelError(
            f"cannot attach before the programs of interface {index}:"
            f" {errno.errorcode.get(error.errno)}",
            hint="dropping at TC before the classifier needs tcx, Linux 6.6",
        ) from None
    return TcxLink(link)
