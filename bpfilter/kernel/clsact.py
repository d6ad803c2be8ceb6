"""Our filter on an interface's clsact qdisc, for kernels without tcx. Uses pyroute2."""

from __future__ import annotations

import errno
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpfilter.errors import KernelError

HANDLE = 0x6270
PRIORITY = 49152
NAME = "bpfilter"
_INGRESS = 0xFFFFFFF2
_EGRESS = 0xFFFFFFF3
_ETH_P_ALL = 3


class Filter:
    """Our filter at one interface's ingress; it outlives this process until `remove`.

    The netlink socket is kept, so that removal happens in the network namespace of attaching.
    """

    def __init__(self, index: int, program_fd: int) -> None:
        """Raises KernelError, with nothing changed, also when our handle is taken."""
        self._index = index
        self._netlink: Any = IPRoute()
        self._made_qdisc = False
        try:
            self._made_qdisc = self._add_qdisc()
            self._add_filter(program_fd)
        except BaseException:
            self._netlink.close()
            raise

    def _add_qdisc(self) -> bool:
        try:
            self._netlink.tc("add", "clsact", self._index)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise KernelError(
                f"cannot add a clsact qdisc to interface {self._index}: {_name(error)}",
                hint="the kernel needs CONFIG_NET_CLS_ACT, and the interface must exist",
            ) from None
        return True

    def _add_filter(self, program_fd: int) -> None:
        try:
            self._netlink.tc(
                "add-filter", "bpf", self._index, handle=HANDLE, fd=program_fd, name=NAME,
                parent=_INGRESS, prio=PRIORITY, protocol=_ETH_P_ALL, direct_action=True,
            )  # fmt: skip
        except NetlinkError as error:
            if self._made_qdisc:
                self._netlink.tc("del", "clsact", self._index)
            raise KernelError(
                f"cannot attach a clsact filter to interface {self._index}: {_name(error)}",
                hint=f"priority {PRIORITY} handle {HANDLE:#x} is taken: an older bpfilter? "
                "bpfilter teardown removes it"
                if error.code == errno.EEXIST
                else "tc filter show dev IF ingress says what is attached",
            ) from None

    def remove(self) -> None:
        """Remove the filter, and the qdisc if we made it and nothing else is on it.

        What is gone already is no error; KernelError if the kernel refuses.
        """
        try:
            self._netlink.tc(
                "del-filter", "bpf", self._index, handle=HANDLE, parent=_INGRESS,
                prio=PRIORITY, protocol=_ETH_P_ALL,
            )  # fmt: skip
            if self._made_qdisc and not self._used():
                self._netlink.tc("del", "clsact", self._index)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                raise KernelError(
                    f"cannot remove our filter from interface {self._index}: {_name(error)}",
                    hint=f"tc filter del dev IF ingress prio {PRIORITY} handle {HANDLE:#x} bpf",
                ) from None
        finally:
            self._netlink.close()

    def _used(self) -> bool:
        return any(
            found
            for parent in (_INGRESS, _EGRESS)
            for found in self._netlink.get_filters(index=self._index, parent=parent)
        )


def _name(error: NetlinkError) -> str:
    return errno.errorcode.get(error.code, str(error))
