"""What of a host's routing the program must be told: devices, forwarding, several paths, rules.

`bpf_fib_lookup` (net/core/filter.c) answers for a packet as the kernel would route it, but for what
it is not told or does not know: marks and other selectors of `ip rule`, a hash left by the network
card or the sender, IPv6 forwarding that is off for the host but forced for a device. Where such a
thing has a say, FORWARD is left to iptables, in that family or for the paths concerned.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any

from bpfilter.errors import KernelError
from bpfilter.ruleset.fields import Family

_SYSCTL = Path("/proc/sys/net")
_KNOWN = 1
_SHIFT = {Family.IPV4: 8, Family.IPV6: 16}
_NUMBER = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_BUILT_IN_LOCAL = 255
_ORDINARY = frozenset(
    {"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SRC", "FRA_DST", "FRA_IIFNAME", "FRA_GOTO",
     "FRA_SUPPRESS_PREFIXLEN", "FRA_SUPPRESS_IFGROUP", "FRA_UNSPEC"}
)  # fmt: skip
"""What `ip rule` may select by and still mean the same to the helper as to the kernel."""
_ADD_MEMBERSHIP, _SOL_NETLINK = 1, 270
_GROUPS = (1, 7, 8, 11, 19, 24, 25, 32)
"""RTNLGRP_LINK, IPV4_ROUTE, IPV4_RULE, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF, IPV6_NETCONF and
NEXTHOP of <linux/rtnetlink.h>."""


class Fact(IntFlag):
    """Of a device and family; ROUTE_* of bpf_templates/config.h."""

    FORWARDS = 1
    SEVERAL = 2
    BY_ADDRESSES = 4
    BY_PORTS = 8


@dataclass(frozen=True, slots=True)
class Device:
    """A network device: its name, and what holds for it per family."""

    name: str
    facts: Mapping[Family, Fact]

    @property
    def known(self) -> int:
        """`known` of the program's struct interface."""
        return _KNOWN | sum(int(fact) << _SHIFT[family] for family, fact in self.facts.items())


@dataclass(frozen=True, slots=True)
class Routing:
    """One network namespace's routing as far as the program rests on it.

    `untrusted`: per family why FORWARD is left to iptables; a family that is absent is trusted.
    """

    devices: Mapping[int, Device]
    untrusted: Mapping[Family, str]

    def forwards(self, family: Family) -> bool:
        """Whether packets of the family may be forwarded and decided, from any device."""
        return any(Fact.FORWARDS in device.facts[family] for device in self.devices.values())


NO_ROUTING = Routing({}, {})


def read_routing() -> Routing:
    """Read netlink and /proc/sys in this thread's network namespace; KernelError if refused."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            names = {
                int(link["index"]): str(link.get_attr("IFLA_IFNAME"))
                for link in netlink.link("dump")
            }
            rules = {f: list(netlink.get_rules(family=n)) for f, n in _NUMBER.items()}
            routes = {f: list(netlink.get_routes(family=n)) for f, n in _NUMBER.items()}
    except (NetlinkError, OSError) as error:
        raise KernelError(
            f"the routing tables cannot be read: {error}",
            hint="netlink must be reachable; inside containers this needs the host's namespace",
        ) from None
    untrusted = {}
    paths: dict[Family, Mapping[int, Fact]] = {}
    for family in Family:
        reason = next(_strange(rules[family], routes[family]), None)
        if reason is not None:
            untrusted[family] = reason
        paths[family] = _several(family, routes[family])
    devices = {
        index: Device(
            name,
            {
                family: paths[family].get(index, Fact(0))
                | (Fact.FORWARDS if family not in untrusted and _forwards(family, name) else 0)
                for family in Family
            },
        )
        for index, name in names.items()
    }
    return Routing(devices, untrusted)


def host_forwards(family: Family) -> bool:
    """Whether any device of this network namespace is configured to forward the family."""
    if family is Family.IPV6:
        return _number(_SYSCTL / "ipv6/conf/all/forwarding") > 0
    configured = (_SYSCTL / "ipv4/conf").glob("*/forwarding")
    return any(_number(path) > 0 for path in configured if path.parent.name != "default")


def _forwards(family: Family, name: str) -> bool:
    """IPv4: the device's own switch. IPv6: the host's; the device's is asked by the helper.

    With the host's off a device can be forced to forward (since 6.17); routes are then chosen by
    reachability, which the helper does not do: left to iptables.
    """
    device = name if family is Family.IPV4 else "all"
    version = "ipv4" if family is Family.IPV4 else "ipv6"
    return _number(_SYSCTL / version / "conf" / device / "forwarding") > 0


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _strange(rules: Iterable[Any], routes: Iterable[Any]) -> Iterator[str]:
    for rule in rules:
        selectors = {name for name, value in rule["attrs"] if value is not None}
        odd = sorted(name.removeprefix("FRA_").lower() for name in selectors - _ORDINARY)
        if rule["tos"]:
            odd.append("tos")
        if odd:
            priority = rule.get_attr("FRA_PRIORITY") or 0
            yield f"ip rule {priority} selects by {', '.join(odd)}"
    for route in routes:
        if route["tos"]:
            yield "a route selects by tos"
        if route.get_attr("RTA_NH_ID") is not None and not any(_outs(route)):
            yield "a route names a nexthop object only (net.ipv4.nexthop_compat_mode is 0)"


def _outs(route: Any) -> Iterator[int]:
    if (index := route.get_attr("RTA_OIF")) is not None:
        yield int(index)
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        yield int(hop["oif"])


def _several(family: Family, routes: Iterable[Any]) -> Mapping[int, Fact]:
    """Devices that share a destination with another one, and how one of them is chosen."""
    groups: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    for route in routes:
        if route["table"] == _BUILT_IN_LOCAL or _stays_here(family, route):
            continue
        attributes = dict(route["attrs"])
        key = (
            attributes.get("RTA_TABLE", route["table"]),
            attributes.get("RTA_DST"),
            route["dst_len"],
            attributes.get("RTA_SRC"),
            route["tos"],
            attributes.get("RTA_PRIORITY"),
        )
        groups[key].append(route)
    facts: dict[int, Fact] = {}
    for members in groups.values():
        devices = {index for route in members for index in _outs(route)}
        if len(devices) > 1:
            # Equal routes that are no multipath route take turns, see find_rr_leaf() of
            # net/ipv6/route.c: then nothing tells which.
            how = _hashed(family) if len(members) == 1 else Fact(0)
            for index in devices:
                before = facts.get(index)
                facts[index] = Fact.SEVERAL | (how if before is None else how & before)
    return facts


def _stays_here(family: Family, route: Any) -> bool:
    """Link-local and multicast destinations are never forwarded."""
    text = str(route.get_attr("RTA_DST") or "")
    if not text or family is Family.IPV4:
        return False
    first = socket.inet_pton(socket.AF_INET6, text)[:2]
    return first[0] == 0xFF or (first[0] == 0xFE and first[1] & 0xC0 == 0x80)


def _hashed(family: Family) -> Fact:
    version = "ipv4" if family is Family.IPV4 else "ipv6"
    policy = _number(_SYSCTL / version / "fib_multipath_hash_policy")
    return {0: Fact.BY_ADDRESSES, 1: Fact.BY_PORTS}.get(policy, Fact(0))


class RoutingEvents:
    """Says whether routing may have changed since it was last asked; a netlink socket.

    Hash policies have no event: they are read each time.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, struct.pack("=i", group))
        self._policies = self._read_policies()

    def changed(self) -> bool:
        """Whether something happened since the last call, as far as the kernel told."""
        happened = self._drained()
        policies = self._read_policies()
        happened |= policies != self._policies
        self._policies = policies
        return happened

    def _drained(self) -> bool:
        happened = False
        while True:
            try:
                happened |= bool(self._socket.recv(65536))
            except BlockingIOError:
                return happened
            except OSError:  # ENOBUFS: more happened than there was room for
                happened = True

    def _read_policies(self) -> tuple[Fact, ...]:
        return tuple(_hashed(family) for family in Family)

    def close(self) -> None:
        """No more events."""
        self._socket.close()
