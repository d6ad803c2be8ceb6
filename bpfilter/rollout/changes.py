"""Notices from the kernel that something on this host changed: interfaces, addresses, rules, IPsec.

Only a wake-up: what changed is then looked up, so a lost notice costs a second, never an answer.
Routes are not among them: the program asks the kernel's own tables for every packet, and routers
change them all the time. Sources: linux/rtnetlink.h, linux/xfrm.h, netlink(7).
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType

_XFRM = 6  # NETLINK_XFRM
_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS = 1, 5, 9  # RTNLGRP_*
_IPV4_RULE, _IPV6_RULE = 8, 19
_ROUTE_GROUPS = (_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS, _IPV4_RULE, _IPV6_RULE)
_XFRM_GROUPS = (3, 4)  # XFRMNLGRP_SA, XFRMNLGRP_POLICY
_BYTES = 1 << 16
_MOST_READ = 256


class Changes:
    """Listens in the network namespace of the thread that makes it; a context manager."""

    def __init__(self) -> None:
        """A kernel without IPsec has no notices of it, and no states either."""
        self._sockets = [_listening(socket.NETLINK_ROUTE, _ROUTE_GROUPS)]
        try:
            self._sockets.append(_listening(_XFRM, _XFRM_GROUPS))
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                self.close()
                raise

    def noticed(self) -> bool:
        """Whether there was a notice since the last call; never blocks.

        Notices that the kernel had no room for count as one.
        """
        return sum(_drained(each) for each in self._sockets) > 0

    def close(self) -> None:
        """Stop listening."""
        for each in self._sockets:
            each.close()

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _listening(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.bind((0, sum(1 << group - 1 for group in groups)))
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _drained(source: socket.socket) -> bool:
    """Read what waits, but not forever where notices come faster than that."""
    for read in range(_MOST_READ):
        try:
            source.recv(_BYTES)
        except BlockingIOError:
            return read > 0
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
    return True
