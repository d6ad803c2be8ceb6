"""Attaching at XDP by BPF links: the kernel refuses to replace a program that is there.

Native attaching may reset the device and drop what is in flight; generic runs on any device, but
later. Frames that XDP drops are not seen by packet sockets (tcpdump).
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from pyroute2 import IPRoute

from bpfilter.errors import KernelError
from bpfilter.kernel import syscall

_SIOCETHTOOL = 0x8946
_ETHTOOL_GFLAGS = 0x25
_RX_VLAN = 1 << 8  # ETH_FLAG_RXVLAN
_BPF_XDP = 37
_PROG_GET_FD_BY_ID = 13
_NAME = slice(64, 80)
_GENERIC, _NATIVE = 2, 4  # XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE
_TAKEN = (errno.EBUSY, errno.EEXIST)
_ATTACHED = {"xdp": "native", "xdpgeneric": "generic", "xdpoffload": "offloaded"}


class XdpMode(StrEnum):
    """How to run at XDP; the value is what users write."""

    NATIVE = "native"  # in the driver
    GENERIC = "generic"  # in the kernel's receive path
    AUTO = "auto"  # native where the driver can, else generic


_FLAGS = {XdpMode.NATIVE: _NATIVE, XdpMode.GENERIC: _GENERIC, XdpMode.AUTO: 0}


class ForeignXdp(KernelError):
    """Another program is at the interface's XDP hook; it is left alone."""

    problem = "foreign-xdp"


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """What runs at an interface's XDP hook. `name` is empty for a program without one."""

    number: int
    name: str
    mode: str

    def __str__(self) -> str:
        return f"XDP program {self.number} ({self.name or 'without a name'}, {self.mode})"


class XdpLink:
    """Our program at an XDP hook; it goes with its last descriptor unless it is pinned."""

    def __init__(self, fd: int, mode: str) -> None:
        self.fd = fd
        self.mode = mode

    def close(self) -> None:
        """Let go of the link; KernelError never."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Id(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("id", "next", "flags"))


def attach_xdp(program_fd: int, index: int, mode: XdpMode) -> XdpLink:
    """Attach at an interface of this thread's network namespace.

    Raises ForeignXdp if a program is there, KernelError if the driver refuses; changes nothing
    then.
    """
    _refuse_foreign(index)
    try:
        fd = syscall.link_create(program_fd, index, _BPF_XDP, flags=_FLAGS[mode])
    except syscall.KernelCallFailed as error:
        if error.errno in _TAKEN:
            _refuse_foreign(index)
        raise KernelError(
            f"cannot attach at XDP of interface {index} in mode {mode}:"
            f" {errno.errorcode.get(error.errno)}",
            hint="the driver may not know native XDP, or not at this MTU: try mode generic",
        ) from None
    found = present(index)
    return XdpLink(fd, found.mode if found is not None else mode)


def present(index: int) -> XdpProgram | None:
    """The program at an interface's XDP hook."""
    with IPRoute() as ipr:
        (link,) = ipr.link("get", index=index)
    state = link.get_attr("IFLA_XDP")
    number = state.get_attr("IFLA_XDP_PROG_ID") if state is not None else None
    if not number:
        return None
    mode = state.get_attr("IFLA_XDP_ATTACHED")
    return XdpProgram(number, _name(number), _ATTACHED.get(mode, str(mode)))


def hides_vlan_tags(name: str) -> bool:
    """Whether the device takes VLAN tags off frames, so that XDP does not see them.

    True as well where it does not say.
    """
    flags = array.array("I", (_ETHTOOL_GFLAGS, 0))
    request = struct.pack("16sP", name.encode(), flags.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request.ljust(40, b"\0"))
        except OSError as error:
            return error.errno != errno.EOPNOTSUPP
    return bool(flags[1] & _RX_VLAN)


def _refuse_foreign(index: int) -> None:
    found = present(index)
    if found is not None:
        raise ForeignXdp(
            f"{found} is at interface {index}",
            hint="it is left alone; without XDP, packets are dropped at TC",
        )


def _name(number: int) -> str:
    try:
        descriptor = syscall.bpf(_PROG_GET_FD_BY_ID, _Id(id=number), f"open program {number}")
    except syscall.KernelCallFailed:
        return ""
    try:
        info = syscall.object_info(descriptor)
    finally:
        os.close(descriptor)
    return info[_NAME].split(b"\0")[0].decode(errors="replace")
