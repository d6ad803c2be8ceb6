"""Netfilter hooks and the BPF links at them. They need Linux 6.4."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from enum import IntEnum
from typing import TypeVar

from bpfilter.kernel import syscall
from bpfilter.kernel.libbpf import BpfObject
from bpfilter.ruleset.fields import Family

_PROG_TYPE_NETFILTER = 32
_PROTOCOL = {Family.IPV4: 2, Family.IPV6: 10}
_Priority = TypeVar("_Priority")


class Hook(IntEnum):
    """Netfilter hooks that have a filter chain; the numbers are the kernel's."""

    INPUT = 1
    FORWARD = 2
    OUTPUT = 3


def as_netfilter(loaded: BpfObject, names: Iterable[str]) -> None:
    """Say of these programs of an object that they are for netfilter; before it is loaded."""
    for name in names:
        loaded.set_type(name, _PROG_TYPE_NETFILTER, syscall.BPF_NETFILTER)


def link(fd: int, family: Family, hook: Hook, priority: int) -> int:
    """A link's descriptor, in this thread's network namespace; it ends with the descriptor.

    KernelCallFailed with EBUSY if another link has that priority.
    """
    words = (_PROTOCOL[family], hook, priority & 0xFFFFFFFF, 0)
    return syscall.link_create(fd, 0, syscall.BPF_NETFILTER, words)


def link_where_free(
    priorities: Sequence[_Priority], attach: Callable[[_Priority, ExitStack], None]
) -> ExitStack:
    """What `attach` gathers at the first of the priorities that nobody has; close it to detach.

    Links cannot be updated in place and a priority holds one, so generations take turns.
    KernelCallFailed with EBUSY if all are taken; nothing is left behind then.
    """
    for priority in priorities[:-1]:
        with ExitStack() as stack:
            try:
                attach(priority, stack)
            except syscall.KernelCallFailed as error:
                if error.errno != errno.EBUSY:
                    raise
            else:
                return stack.pop_all()
    with ExitStack() as stack:
        attach(priorities[-1], stack)
        return stack.pop_all()


def closing(stack: ExitStack, descriptor: int) -> None:
    """Close a descriptor with the stack."""
    stack.callback(os.close, descriptor)
