"""Where the kernel would send a packet that arrives, by its own route look-up (RTM_GETROUTE)."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

_RTN_LOCAL, _RTN_BROADCAST = 2, 3


@dataclass(frozen=True, slots=True)
class Way:
    """`here`: it is for this host; else `out_interface` is where it leaves."""

    here: bool
    out_interface: str = ""


def way_of(
    source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address, in_interface: str
) -> Way | None:
    """The way of a packet in this thread's namespace; None where the kernel routes it nowhere.

    In that case it comes to no filter chain (or the interface does not exist).
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    if destination.is_multicast:
        return Way(True)
    with IPRoute() as netlink:
        indices = netlink.link_lookup(ifname=in_interface)
        if not indices:
            return None
        try:
            (route,) = netlink.route(
                "get", dst=str(destination), src=str(source), iif=indices[0], family=family
            )
            if route["type"] in (_RTN_LOCAL, _RTN_BROADCAST):
                return Way(True)
            (link,) = netlink.get_links(route.get_attr("RTA_OIF"))
        except (NetlinkError, ValueError):
            return None
        return Way(False, str(link.get_attr("IFLA_IFNAME")))
