"""What in the current network namespace stands against enforcement, and who uses the mark.

Reads netlink, /proc, nft(8) and ip(8); changes nothing. Each finding says what it is and what to
do. A source that exists but cannot be read counts as a finding: nothing is assumed free.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError
from pyroute2.nftables.main import NFTables

from bpfilter.rollout.mark import WHOLE, MarkUse
from bpfilter.ruleset.model import Rule, Ruleset

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_INGRESS_HOOKS = frozenset({"prerouting", "input", "ingress"})
_ALTERING = frozenset(
    {"mangle", "dnat", "snat", "masquerade", "redirect", "tproxy", "notrack", "queue", "fwd", "dup",
     "flow", "log", "synproxy"}
)  # fmt: skip
_TRACKING = frozenset(
    {"conntrack", "state", "connmark", "connbytes", "connlabel", "connlimit", "helper", "cluster",
     "CONNMARK", "CONNSECMARK", "CT", "NOTRACK", "SYNPROXY"}
)  # fmt: skip
"""Matches and targets that make conntrack follow the packets of a network namespace."""
_NFT_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
"""NFPROTO_… of linux/netfilter.h, as nft(8) names them."""

_XTABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})
_ARPHRD_ETHER = 1
_OUTSIDE_VRF = "leave it to iptables, and attach interfaces outside of VRFs"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why programs may not decide packets here, and what would change that."""

    what: str
    hint: str


def _tool(*words: str) -> subprocess.CompletedProcess[str] | None:
    """None if the tool is not installed."""
    path = shutil.which(words[0], path=_PATH)
    if path is None:
        return None
    return subprocess.run([path, *words[1:]], capture_output=True, text=True, timeout=30)


def mark_uses() -> tuple[MarkUse, ...]:
    """Users of the mark outside of iptables: routing, IPsec, sets, native nft tables."""
    return (*routing_marks(), *xfrm_marks(), *_set_marks(), *_nft_marks(native_nft()))


def routing_marks() -> Iterator[MarkUse]:
    """Marks that `ip rule` looks at."""
    with IPRoute() as ipr:
        for family in (socket.AF_INET, socket.AF_INET6):
            for rule in ipr.get_rules(family=family):
                mark, mask = rule.get_attr("FRA_FWMARK"), rule.get_attr("FRA_FWMASK")
                if mark is not None or mask is not None:
                    bits = WHOLE if mask is None else mask
                    yield MarkUse(bits, f"ip rule {rule.get_attr('FRA_PRIORITY')} fwmark")


def xfrm_marks() -> Iterator[MarkUse]:
    """Marks that IPsec states and policies look at."""
    for kind in ("state", "policy"):
        done = _tool("ip", "xfrm", kind)
        for value, mask in re.findall(
            r"mark (0x[0-9a-f]+|\d+)(?:/(0x[0-9a-f]+|\d+))?", done.stdout if done else ""
        ):
            bits = int(mask, 0) | int(value, 0) if mask else WHOLE
            yield MarkUse(bits, f"ip xfrm {kind} with a mark")


def _set_marks() -> Iterator[MarkUse]:
    """Sets whose elements hold a mark: `-m set` then reads the packet's."""
    done = _tool("ipset", "list", "-terse")
    for name, kind in re.findall(r"^Name: (.+)\nType: (.+)$", done.stdout if done else "", re.M):
        if "mark" in kind:
            yield MarkUse(WHOLE, f"ipset {name} of type {kind}")


def native_nft() -> Sequence[Any]:
    """The objects of nft's JSON listing, without the tables that iptables-nft keeps."""
    return nft_listing() or ()


def shared_hooks() -> frozenset[str]:
    """Hooks (`input` …) where native nft has base chains at iptables' filter, or within 2 of it."""
    chains = (entry["chain"] for entry in native_nft() if "chain" in entry)
    return frozenset(
        chain["hook"]
        for chain in chains
        if chain["family"] in ("ip", "ip6", "inet")
        and "hook" in chain
        and -2 <= chain.get("prio", 0) <= 2
    )


def nft_listing() -> Sequence[Any] | None:
    """As `native_nft`, but None where nothing can be listed.

    The tables of iptables-nft are not even asked for, nor is nft(8) where there are no others: with
    thousands of rules it takes a second for them, and a seventh for the names of tables alone.
    """
    tables = _nft_tables()
    if tables is None:
        return None
    native = [table for table in tables if not _of_xtables(table)]
    parts = [_listed("table", table["family"], table["name"]) for table in native]
    if None in parts:
        return None
    return [entry for part in parts for entry in part or ()]


def _nft_tables() -> Sequence[Mapping[str, str]] | None:
    try:
        with closing(NFTables(nfgen_family=0)) as nft:
            return [
                {
                    "family": _NFT_FAMILIES[table["nfgen_family"]],
                    "name": table.get_attr("NFTA_TABLE_NAME"),
                }
                for table in nft.get_tables()
            ]
    except (OSError, NetlinkError):
        return None


def _listed(*what: str) -> Sequence[Any] | None:
    done = _tool("nft", "-j", "list", *what)
    if done is None or done.returncode != 0:
        return None
    return [entry for entry in json.loads(done.stdout)["nftables"] if "metainfo" not in entry]


def _of_xtables(thing: Any) -> bool:
    table = thing.get("table", thing.get("name"))
    return thing.get("family") in ("ip", "ip6", "arp", "bridge") and table in _XTABLES


def _nft_marks(objects: Sequence[Any]) -> Iterator[MarkUse]:
    for entry in objects:
        if "rule" in entry and '"key": "mark"' in json.dumps(entry["rule"]):
            rule = entry["rule"]
            yield MarkUse(WHOLE, f"nft rule in {rule['family']} {rule['table']} {rule['chain']}")


def may_translate(rulesets: Iterable[Ruleset]) -> bool:
    """Whether addresses may be rewritten though no rule does so now, where conntrack is at work.

    An entry keeps its mapping when its rule is gone, as long as any nat table, even an empty one,
    hooks the packets. And no generation shows a rule that is added to a legacy nat table.
    """
    rulesets = tuple(rulesets)
    names = [Path(f"/proc/net/{family}_tables_names") for family in ("ip", "ip6")]
    legacy = any(path.exists() and "nat" in path.read_text().split() for path in names)
    if not legacy and not any("nat" in ruleset.tables for ruleset in rulesets):
        return False
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    if not count.exists() or int(count.read_text()) > 0:
        return True
    return any(tracks(rule) for ruleset in rulesets for rule in ruleset.rules())


def tracks(rule: Rule) -> bool:
    """Whether a rule makes the kernel track connections."""
    return not _TRACKING.isdisjoint({rule.target.name, *(match.name for match in rule.matches)})


def host_obstacles() -> tuple[Obstacle, ...]:
    """Obstacles that concern the whole network namespace."""
    return (*_clock(), *_nft_obstacles(native_nft()), *xfrm_obstacles(), *bridge_obstacles())


def _clock() -> Iterator[Obstacle]:
    path = Path("/proc/self/timens_offsets")
    offsets = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    if any(words[0] == "monotonic" and words[1:] != ["0", "0"] for words in offsets):
        yield Obstacle(
            "this process is in a time namespace of its own, so its leases would not expire",
            "start the daemon outside of the container's time namespace",
        )


def _nft_obstacles(objects: Sequence[Any]) -> Iterator[Obstacle]:
    ingress = {
        (chain["family"], chain["table"])
        for chain in (entry["chain"] for entry in objects if "chain" in entry)
        if chain.get("hook") in _INGRESS_HOOKS
    }
    for rule in (entry["rule"] for entry in objects if "rule" in entry):
        words = {key for part in rule.get("expr", ()) for key in part}
        if (rule["family"], rule["table"]) in ingress and words & _ALTERING:
            verb = ", ".join(sorted(words & _ALTERING))
            yield Obstacle(
                f"native nft table {rule['family']} {rule['table']} may alter packets ({verb})",
                "move this rule to iptables, or stay in the shadow stage",
            )


def xfrm_obstacles() -> Iterator[Obstacle]:
    """IPsec states."""
    done = _tool("ip", "xfrm", "state")
    if done is not None and done.stdout.strip():
        yield Obstacle(
            "IPsec states are configured: decrypted packets pass INPUT under the same interface",
            "stay in the shadow stage on IPsec hosts",
        )


def bridge_obstacles() -> Iterator[Obstacle]:
    """Bridges whose frames pass iptables."""
    switches = [Path(f"/proc/sys/net/bridge/bridge-nf-call-ip{v}tables") for v in ("", "6")]
    if not any(switch.exists() and switch.read_text().strip() != "0" for switch in switches):
        return
    with IPRoute() as ipr:
        if list(ipr.link("dump", kind="bridge")):
            yield Obstacle(
                "a bridge exists and br_netfilter passes its frames to iptables",
                "set the sysctls net.bridge.bridge-nf-call-iptables and -ip6tables to 0",
            )


def link_index(name: str) -> int | None:
    """The index of an interface in this namespace, or None."""
    with IPRoute() as ipr:
        found: list[int] = list(ipr.link_lookup(ifname=name))
    return found[0] if found else None


def link_obstacles(name: str) -> tuple[Obstacle, ...]:
    """Obstacles on one interface: only where IP itself receives may a program decide."""
    with IPRoute() as ipr:
        links = list(ipr.link("dump"))
    link = next((entry for entry in links if entry.get_attr("IFLA_IFNAME") == name), None)
    if link is None:
        return (Obstacle(f"there is no interface {name}", "see `ip link`"),)
    return tuple(link_findings(name, link, links))


def link_findings(name: str, link: Any, links: Sequence[Any]) -> Iterator[Obstacle]:
    """Obstacles on one link of a dump of all links."""
    if link["ifi_type"] != _ARPHRD_ETHER:
        yield Obstacle(f"{name} is not an Ethernet interface", "attach Ethernet interfaces only")
    if _kind(link) == "vrf":
        yield Obstacle(f"{name} is a VRF device: packets enter it behind TC", _OUTSIDE_VRF)
    master = next((each for each in links if each["index"] == link.get_attr("IFLA_MASTER")), None)
    if master is not None and _kind(master) == "vrf":
        vrf = master.get_attr("IFLA_IFNAME")
        yield Obstacle(f"{name} is in VRF {vrf}: INPUT sees its packets as {vrf}'s", _OUTSIDE_VRF)
    elif link.get_attr("IFLA_MASTER") is not None:
        yield Obstacle(
            f"{name} has a master, which receives its packets", "attach the master instead"
        )
    for upper in links:
        kind = _kind(upper)
        stacked = kind in ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec")
        if stacked and upper.get_attr("IFLA_LINK") == link["index"]:
            yield Obstacle(
                f"{upper.get_attr('IFLA_IFNAME')} ({kind}) is stacked on {name}",
                "attach interfaces without VLAN, macvlan or ipvlan uppers",
            )


def _kind(link: Any) -> str | None:
    """What `ip link add type` made it; None for hardware and the like."""
    info = link.get_attr("IFLA_LINKINFO")
    return None if info is None else info.get_attr("IFLA_INFO_KIND")
