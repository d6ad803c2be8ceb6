"""The lab's network: a firewall namespace with one veth per class of interface names.

The devices bear the names that the ruleset writes, so `-i` and `-o` match as they would on the
host; the firewall's loopback is renamed, to leave `lo` free for such a device. Every device's other
end is in a peer namespace that answers nothing.

Routing lets any destination reach the hook under test: what comes in looks up table 100, which
sends everything to this host (INPUT) or out of one device (FORWARD). The local table stays as it
is, and with it what addrtype says. Sources: ip-rule(8), net/ipv4/route.c, Documentation/networking/
ip-sysctl.rst.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bpfilter.compiler.ir import Space
from bpfilter.lab.netns import Namespace
from bpfilter.ruleset.fields import Family

LOOPBACK = "bpfloop"
EXIT = "bpfexit"
"""The device by which the firewall's own packets leave."""

LONGEST_NAME = 15
MTU = 65535
_TABLE_IN, _TABLE_OWN = "100", "101"
_IP_ADD_MEMBERSHIP = 35
_VERSION = {Family.IPV4: "-4", Family.IPV6: "-6"}
_SETTINGS = {
    "ipv4/conf/{}/rp_filter": 0,
    "ipv4/conf/{}/accept_local": 1,
    "ipv4/conf/{}/route_localnet": 1,
    "ipv4/conf/{}/send_redirects": 0,
    "ipv4/conf/{}/forwarding": 1,
    "ipv6/conf/{}/accept_ra": 0,
    "ipv6/conf/{}/addr_gen_mode": 1,
    "ipv6/conf/{}/accept_dad": 0,
    "ipv6/conf/{}/router_solicitations": 0,
    "ipv6/conf/{}/forwarding": 1,
}


@dataclass(frozen=True, slots=True)
class Device:
    """A firewall device: its name, index and address; `peer` is the other end's index."""

    name: str
    index: int
    peer: int
    mac: bytes


def device_names(space: Space) -> Mapping[int, str]:
    """For every class of interface names that a device can bear: such a name.

    Missing: names that the kernel refuses (too long, with `/`, `:` or white space), and
    patterns whose every name belongs to another class.
    """
    names: dict[int, str] = {}
    for index, text in enumerate(space.interfaces):
        for name in _candidates(text):
            if is_device_name(name) and space.interface_class(name) == index:
                names[index] = name
                break
    return names


def is_device_name(name: str) -> bool:
    """What dev_valid_name of net/core/dev.c takes, but for the lab's own names and for quotes."""
    if not name or len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        return False
    if name in (".", "..", LOOPBACK, EXIT) or "%" in name:
        return False
    return not any(c in "/:#\"'\\" or c.isspace() for c in name)


def _candidates(text: str) -> Iterable[str]:
    if not text:
        return (f"{stem}{digit}" for stem in ("none", "void", "zz", "q") for digit in range(10))
    if not text.endswith("+"):
        return (text,)
    stem = text[:-1]
    return (*(f"{stem}{digit}" for digit in range(100)), stem, f"{stem}x", f"{stem}zz")


class Topology:
    """The two namespaces, ready to receive frames; a context manager by its namespaces.

    `devices`: name → device. Raises LabError if something cannot be built.
    """

    def __init__(self, names: Sequence[str], lock: Path) -> None:
        self.firewall = Namespace(lock)
        self.peer = Namespace(lock)
        self._groups: list[socket.socket] = []
        try:
            self._link(names)
            self._route(names)
            self.devices = {n: self._device(n, number) for number, n in enumerate(names, 1)}
        except BaseException:
            self.close()
            raise

    def _link(self, names: Sequence[str]) -> None:
        for key in ("all", "default"):
            self.peer.write(f"ipv6/conf/{key}/disable_ipv6", 1)
            for setting, value in _SETTINGS.items():
                self.firewall.write(setting.format(key), value)
        self.firewall.write("ipv4/igmp_max_memberships", 1 << 16)
        lines = [f"link set lo name {LOOPBACK}", f"link set {LOOPBACK} up"]
        for number, name in enumerate([EXIT, *names]):
            lines += [
                f"link add {name} address {_mac(number).hex(':')} mtu {MTU} arp off type veth"
                f" peer name p{number} mtu {MTU} arp off netns {self.peer.path}",
                f"link set {name} up",
            ]
        self._batch(self.firewall, lines)
        self._batch(self.peer, [f"link set p{number} up" for number in range(len(names) + 1)])

    def _route(self, names: Sequence[str]) -> None:
        for family in Family:
            self._batch(
                self.firewall,
                [
                    "rule add pref 200 lookup local",
                    "rule del pref 0",
                    f"rule add pref 10 iif {LOOPBACK} lookup {_TABLE_OWN}",
                    *(f"rule add pref 20 iif {name} lookup {_TABLE_IN}" for name in names),
                    *(f"route add {route}" for route in _routes(family, names)),
                ],
                _VERSION[family],
            )
            self.to_input(family)

    def to_input(self, family: Family) -> None:
        """From now on, what comes in is for this host."""
        self._default(family, f"local default dev {LOOPBACK}")

    def to_forward(self, family: Family, name: str) -> None:
        """From now on, what comes in leaves by the device of this name."""
        self._default(family, f"default dev {name}")

    def _default(self, family: Family, route: str) -> None:
        self._batch(self.firewall, [f"route replace {route} table {_TABLE_IN}"], _VERSION[family])

    def add_addresses(self, kinds: Mapping[int, str]) -> None:
        """Put IPv4 addresses into the local table, each of a kind (local, broadcast …).

        Addresses that cannot be of the kind are left out; see `read_local_table`.
        """
        lines = [
            f"route add {kind} {socket.inet_ntoa(address.to_bytes(4, 'big'))}/32"
            f" dev {LOOPBACK} table local"
            for address, kind in kinds.items()
        ]
        text = "\n".join([*lines, ""]).encode()
        self.firewall.run("ip", ["-4", "-force", "-batch", "-"], text, check=False)

    def join(self, groups: Iterable[tuple[int, str]]) -> None:
        """Listen to IPv4 multicast groups, pairs (address, device): others are not delivered."""
        with self.firewall.inside():
            member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._groups.append(member)
        for address, name in groups:
            device = self.devices[name]
            request = address.to_bytes(4, "big") + bytes(4) + struct.pack("=i", device.index)
            with suppress(OSError):
                member.setsockopt(socket.IPPROTO_IP, _IP_ADD_MEMBERSHIP, request)

    def _device(self, name: str, number: int) -> Device:
        with self.firewall.inside():
            index = socket.if_nametoindex(name)
        with self.peer.inside():
            return Device(name, index, socket.if_nametoindex(f"p{number}"), _mac(number))

    def _batch(self, namespace: Namespace, lines: Sequence[str], *options: str) -> None:
        if lines:
            text = "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")
            namespace.run("ip", [*options, "-batch", "-"], text)

    def close(self) -> None:
        """Let go of both namespaces."""
        for member in self._groups:
            member.close()
        self.peer.close()
        self.firewall.close()

    def __enter__(self) -> Topology:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _routes(family: Family, names: Sequence[str]) -> list[str]:
    """A way back by every device, for rpfilter asks for one by the device that a packet came from.

    IPv6 looks link-local destinations up by that device too.
    """
    out = [EXIT, *names]
    if family is Family.IPV4:
        return [f"table {_TABLE_OWN} default" + "".join(f" nexthop dev {name}" for name in out)]
    back = [f"default dev {n} metric {m} table {_TABLE_OWN}" for m, n in enumerate(out, 1)]
    near = [f"local fe80::/10 dev {n} metric {m} table {_TABLE_IN}" for m, n in enumerate(names, 1)]
    return back + near


def _mac(number: int) -> bytes:
    return bytes((2, 0xBF, 0, 0, number >> 8, number & 255))
