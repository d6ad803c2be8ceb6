"""The kernel's local routing table: which addresses are LOCAL, BROADCAST, ANYCAST, MULTICAST.

It is what `inet_addr_type` (net/ipv4/fib_frontend.c) consults.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bpfilter.errors import KernelError
from bpfilter.ruleset.fields import Family

RT_TABLE_LOCAL = 255
ADDRESS_KEY_BYTES = 24


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A prefix of the local table. `address` in network order, `kind` an RTN_* number."""

    family: Family
    address: bytes
    prefix_length: int
    kind: int

    @property
    def key(self) -> bytes:
        """The key in the program's `addresses` map."""
        version = 4 if self.family is Family.IPV4 else 6
        return (
            struct.pack("=I", 32 + self.prefix_length)
            + struct.pack("!I", version)
            + self.address.ljust(16, b"\0")
        )


def read_local_table() -> tuple[LocalRoute, ...]:
    """The local tables of both families in this thread's network namespace.

    Raises KernelError when netlink refuses.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    routes: list[LocalRoute] = []
    try:
        with IPRoute() as netlink:
            for number, family in ((socket.AF_INET, Family.IPV4), (socket.AF_INET6, Family.IPV6)):
                dump = netlink.get_routes(family=number, table=RT_TABLE_LOCAL)
                routes.extend(_routes(dump, number, family))
    except (NetlinkError, OSError) as error:
        raise KernelError(
            f"the local routing table cannot be read: {error}",
            hint="netlink must be reachable; inside containers this needs the host's namespace",
        ) from None
    return tuple(routes)


def _routes(dump: Iterable[Any], number: int, family: Family) -> Iterable[LocalRoute]:
    width = 4 if family is Family.IPV4 else 16
    for message in dump:
        attributes = dict(message["attrs"])
        if attributes.get("RTA_TABLE") != RT_TABLE_LOCAL:
            continue
        text = attributes.get("RTA_DST")
        address = socket.inet_pton(number, text) if text else bytes(width)
        yield LocalRoute(family, address, message["dst_len"], message["type"])
