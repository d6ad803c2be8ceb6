"""Interfaces of many kinds as the firewall's `v1`; the peer's end is always `p1`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cases.case import Case
from tests.rollout.network import call, entered

BELOW_FW, BELOW_PEER = "10.98.1.1", "10.98.1.2"


def saved(case: Case) -> list[str]:
    """The firewall's rules, without the dates."""
    return [line for line in case.tables.save().splitlines() if not line.startswith("#")]


class Stacked(Case):
    """`v1` and `p1` on top of a veth pair, `w1` and `q1`."""

    def _link(self) -> None:
        call("ip", "-n", self.fw, "link", "add", "w1", "type", "veth", "peer", "name", "q1",
             "netns", self.peer)  # fmt: skip
        for name, device, address in (
            (self.fw, "w1", BELOW_FW),
            (self.peer, "q1", BELOW_PEER),
        ):
            self._ipv6(name, device, enabled=False)
            call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            call("ip", "-n", name, "link", "set", device, "up")
        self._stack()

    def _stack(self) -> None:
        raise NotImplementedError

    def _add(self, namespace: str, *words: str) -> None:
        call("ip", "-n", namespace, "link", "add", *words)

    def _ipv6(self, namespace: str, device: str, *, enabled: bool) -> None:
        with entered(namespace):
            Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text(str(int(not enabled)))

    def _peer_is_plain(self) -> None:
        """The peer's end of the pair itself is `p1`."""
        self._ipv6(self.peer, "q1", enabled=True)
        call("ip", "-n", self.peer, "addr", "flush", "dev", "q1")
        call("ip", "-n", self.peer, "link", "set", "q1", "down")
        call("ip", "-n", self.peer, "link", "set", "q1", "name", "p1")


class Vlan(Stacked):
    """An 802.1Q child; its frames pass the parent with the tag beside the data."""

    def _stack(self) -> None:
        self._add(self.fw, "link", "w1", "name", "v1", "type", "vlan", "id", "10")
        self._add(self.peer, "link", "q1", "name", "p1", "type", "vlan", "id", "10")


class Bond(Stacked):
    """A bond with one port."""

    def _stack(self) -> None:
        self._peer_is_plain()
        self._add(self.fw, "v1", "type", "bond", "mode", "balance-rr")
        call("ip", "-n", self.fw, "link", "set", "w1", "down")
        call("ip", "-n", self.fw, "link", "set", "w1", "master", "v1")


class Bridge(Stacked):
    """A bridge with one port, whose frames br_netfilter does not pass to iptables."""

    def _stack(self) -> None:
        with entered(self.fw):
            for switch in Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables"):
                switch.write_text("0")
        self._peer_is_plain()
        self._add(self.fw, "v1", "type", "bridge", "forward_delay", "0")
        call("ip", "-n", self.fw, "link", "set", "w1", "master", "v1")


class Macvlan(Stacked):
    def _stack(self) -> None:
        self._peer_is_plain()
        self._add(self.fw, "link", "w1", "name", "v1", "type", "macvlan", "mode", "bridge")


class Ipvlan(Stacked):
    def _stack(self) -> None:
        self._peer_is_plain()
        self._add(self.fw, "link", "w1", "name", "v1", "type", "ipvlan", "mode", "l2")


class Gretap(Stacked):
    """Ethernet in GRE."""

    def _stack(self) -> None:
        for name, device, ends in (
            (self.fw, "v1", (BELOW_FW, BELOW_PEER)),
            (self.peer, "p1", (BELOW_PEER, BELOW_FW)),
        ):
            self._add(name, device, "type", "gretap", "local", ends[0], "remote", ends[1])


class Netkit(Case):
    """A netkit pair in its default mode, which has no MAC addresses to resolve."""

    def _link(self) -> None:
        call("ip", "-n", self.fw, "link", "add", "v1", "type", "netkit")
        shown = json.loads(call("ip", "-n", self.fw, "-json", "link", "show", "type", "netkit"))
        (other,) = {link["ifname"] for link in shown} - {"v1"}
        call("ip", "-n", self.fw, "link", "set", other, "netns", self.peer)
        call("ip", "-n", self.peer, "link", "set", other, "name", "p1")
