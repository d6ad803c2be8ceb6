"""What BPF programs stand at the TC ingress of this network namespace's interfaces, ours or not.

Asks the kernel, so it needs no journal and no pins: BPF_PROG_QUERY for tcx, netlink for clsact
filters. Finding objects by id needs CAP_SYS_ADMIN. Sources: linux/bpf.h, net/core/tcx.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from bpfilter.kernel import clsact
from bpfilter.kernel.syscall import BPF_TCX_INGRESS, KernelCallFailed, bpf, object_info

_PROG_GET_FD_BY_ID, _PROG_QUERY = 13, 16
_NAME_OFFSET, _NAME_BYTES = 64, 16
_MOST = 64
_CLSACT_INGRESS = 0xFFFFFFF2
_INGRESS_PARENTS = (_CLSACT_INGRESS, 0xFFFF0000)


@dataclass(frozen=True, slots=True)
class Attached:
    """One program at the ingress of an interface.

    `number` is the program's and `link` its tcx link's; 0 and None for filters of other kinds.
    """

    interface: str
    index: int
    program: str
    link: int | None
    handle: int = 0
    priority: int = 0
    number: int = 0

    @property
    def our_filter(self) -> bool:
        """Whether it is the clsact filter that the kernel binding makes."""
        found = (self.handle, self.priority, self.program)
        return self.link is None and found == (clsact.HANDLE, clsact.PRIORITY, clsact.NAME)

    def __str__(self) -> str:
        return f"program {self.program} at {self.interface}"


class _Query(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("programs", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("program_flags", ctypes.c_uint64),
        ("links", ctypes.c_uint64),
        ("link_flags", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
    )


class _Id(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint32),
        ("next", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


def attached(interfaces: Sequence[str] | None = None) -> tuple[Attached, ...]:
    """Programs at TC ingress of the named interfaces (default: all), tcx before clsact."""
    with IPRoute() as ipr:
        links = [(link["index"], link.get_attr("IFLA_IFNAME")) for link in ipr.link("dump")]
        return tuple(
            found
            for index, name in links
            if interfaces is None or name in interfaces
            for found in (*_tcx(index, name), *_clsact(ipr, index, name))
        )


def _tcx(index: int, name: str) -> Iterator[Attached]:
    programs, links = (ctypes.c_uint32 * _MOST)(), (ctypes.c_uint32 * _MOST)()
    query = _Query(
        target=index,
        attach_type=BPF_TCX_INGRESS,
        programs=ctypes.addressof(programs),
        count=_MOST,
        links=ctypes.addressof(links),
    )
    try:
        bpf(_PROG_QUERY, query, f"ask for the programs at {name}")
    except KernelCallFailed as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # before 6.6: no tcx, so nothing there
            return
        raise
    for position in range(query.count):
        number = programs[position]
        link = links[position] or None
        yield Attached(name, index, _program_name(number), link, number=number)


def tcx_revision(index: int) -> int | None:
    """Changes whenever somebody attaches or detaches at an interface's tcx ingress.

    None where the interface is gone or the kernel has no tcx (before 6.6).
    """
    query = _Query(target=index, attach_type=BPF_TCX_INGRESS)
    try:
        bpf(_PROG_QUERY, query, f"ask for the programs at interface {index}")
    except KernelCallFailed as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV):
            return None
        raise
    return int(query.revision)


def _program_name(number: int) -> str:
    descriptor = bpf(_PROG_GET_FD_BY_ID, _Id(id=number), f"open program {number}")
    try:
        info = object_info(descriptor)
    finally:
        os.close(descriptor)
    return info[_NAME_OFFSET : _NAME_OFFSET + _NAME_BYTES].split(b"\0")[0].decode()


def _clsact(ipr: Any, index: int, name: str) -> Iterator[Attached]:
    for parent in _INGRESS_PARENTS:
        try:
            filters = list(ipr.get_filters(index=index, parent=parent))
        except NetlinkError as error:
            if error.code in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                continue
            raise
        for entry in filters:
            options = entry.get_attr("TCA_OPTIONS")
            if options is None or not entry["handle"]:
                continue
            kind = entry.get_attr("TCA_KIND")
            program = options.get_attr("TCA_BPF_NAME") if kind == "bpf" else None
            number = options.get_attr("TCA_BPF_ID") or 0
            priority = entry["info"] >> 16
            yield Attached(name, index, program or kind, None, entry["handle"], priority, number)


def remove_filter(found: Attached) -> None:
    """Remove a clsact filter that `attached` found."""
    with IPRoute() as ipr:
        ipr.tc("del-filter", "bpf", found.index, handle=found.handle, parent=_CLSACT_INGRESS,
               prio=found.priority, protocol=3)  # fmt: skip
