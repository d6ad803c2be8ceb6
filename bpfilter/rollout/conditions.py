"""Conditions of the host under which packets may be dropped before netfilter sees them.

What is dropped early must not have had any effect: on native nft chains before filter, on packet
sockets, on log lines of conntrack and routing. Each finding says what stands against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bpfilter.rollout import host
from bpfilter.rollout.host import Obstacle
from bpfilter.ruleset.model import Ruleset

_NETWORK = Path("/proc/thread-self/net")
_SYSCTL = Path("/proc/sys/net")
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_BEFORE_FILTER = frozenset({"ingress", "prerouting"})
_BESIDE_FILTER = frozenset({"input", "forward"})
_FILTER_PRIORITY = 0
_FAMILIES = frozenset({"ip", "ip6", "inet", "netdev"})
_LOOKUPS = (b" bpf_xdp_ct_lookup", b" bpf_skb_ct_lookup")


def early_conditions(
    interfaces: Sequence[str], accept_sockets: bool, *, rules: bool = True
) -> Iterator[Obstacle]:
    """What stands against early drops at these interfaces. `rules`: also look at native nft."""
    if not accept_sockets:
        yield from _sockets(interfaces)
    yield from _logging(interfaces)
    if rules:
        yield from _native_nft()


def expectations_possible(rulesets: Iterable[Ruleset]) -> bool:
    """Whether a packet without a conntrack entry may be RELATED: an expectation may exist."""
    if _sysctl("netfilter/nf_conntrack_helper") not in ("", "0"):
        return True
    expected = _NETWORK / "nf_conntrack_expect"
    if expected.exists() and expected.read_text().strip():
        return True
    services = _NETWORK / "ip_vs"
    if services.exists() and len(services.read_text().splitlines()) > 3:
        return True
    return any(
        rule.target.name == "CT" and rule.target.words != ("-j", "CT", "--notrack")
        for ruleset in rulesets
        for rule in ruleset.rules()
    )


def lookups_possible() -> bool:
    """Whether BPF programs can ask this kernel for conntrack entries."""
    symbols = Path("/proc/kallsyms").read_bytes()
    return all(name in symbols for name in _LOOKUPS)


def _sockets(interfaces: Sequence[str]) -> Iterator[Obstacle]:
    """Packet sockets for IP alone come behind TC, before netfilter: DHCP clients, for example.

    Those for all protocols see packets before TC; XDP hides packets from them, which is announced.
    """
    indices = {0, *(host.link_index(name) for name in interfaces)}
    for line in (_NETWORK / "packet").read_text().splitlines()[1:]:
        words = line.split()
        protocol, index, inode = int(words[3], 16), int(words[4]), words[8]
        if protocol in (_ETH_P_IP, _ETH_P_IPV6) and index in indices:
            yield Obstacle(
                f"a packet socket of {_owner(inode)} sees packets before iptables does",
                "stop it, or accept that it misses packets which INPUT drops"
                " (DHCP's are never dropped early)",
            )


def _owner(inode: str) -> str:
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(path.readlink()) == wanted for path in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} ({process.name})"
        except OSError:
            continue
    return "an unknown process"


def _logging(interfaces: Sequence[str]) -> Iterator[Obstacle]:
    if _sysctl("netfilter/nf_conntrack_log_invalid") not in ("", "0"):
        yield Obstacle(
            "conntrack logs invalid packets",
            "set the sysctl net.netfilter.nf_conntrack_log_invalid to 0",
        )
    for name in ("all", *interfaces):
        if _sysctl(f"ipv4/conf/{name}/log_martians") not in ("", "0"):
            yield Obstacle(
                f"packets with impossible addresses are logged ({name})",
                f"set the sysctl net.ipv4.conf.{name}.log_martians to 0",
            )


def _sysctl(name: str) -> str:
    """The value, empty where the kernel has no such setting."""
    path = _SYSCTL / name
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _native_nft() -> Iterator[Obstacle]:
    listing = host.nft_listing()
    if listing is None:
        yield Obstacle(
            "native nft tables cannot be listed, and they could come before filter",
            "install nftables, whose `nft` lists them",
        )
        return
    for where in effective_chains(listing):
        yield Obstacle(
            f"native nft {where} has a say before filter",
            "move its rules to iptables, or keep to late drops",
        )


def effective_chains(objects: Sequence[Any]) -> Iterator[str]:
    """Native nft chains that packets pass before filter and that are not empty, and flowtables."""
    ruled = {_place(entry["rule"], "chain") for entry in objects if "rule" in entry}
    for entry in objects:
        if "flowtable" in entry and entry["flowtable"]["family"] in _FAMILIES:
            yield f"flowtable {' '.join(_place(entry['flowtable'], 'name'))}"
        chain = entry.get("chain", {})
        if _before_filter(chain) and _place(chain, "name") in ruled:
            yield f"chain {' '.join(_place(chain, 'name'))}"


def _before_filter(chain: Any) -> bool:
    if chain.get("family") not in _FAMILIES:
        return False
    hook = chain.get("hook")
    if hook in _BESIDE_FILTER:
        return bool(chain.get("prio", _FILTER_PRIORITY) <= _FILTER_PRIORITY)
    return hook in _BEFORE_FILTER


def _place(thing: Any, name: str) -> tuple[str, str, str]:
    return thing["family"], thing["table"], thing[name]
