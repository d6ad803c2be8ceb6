"""The operator's own connection: found, and asked of a plan whether it would be dropped.

A cutover gives the verdicts that iptables gives; but an operator whose connection lives on a rule
that is gone, or on an entry of conntrack alone, should hear it before anything changes.
Sources: proc_net_tcp(5), sshd(8) for SSH_CONNECTION.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from bpfilter.compiler.ir import Verdict, Walk
from bpfilter.compiler.plan import ChainPlan, Plan
from bpfilter.compiler.walk import Packet, walk
from bpfilter.errors import RolloutError, UsageError
from bpfilter.rollout.prepare import Prepared
from bpfilter.ruleset.fields import Family, Field, State
from bpfilter.ruleset.model import RuleRef

Address = IPv4Address | IPv6Address
_PROC = Path("/proc")
_ESTABLISHED = "01"
_SYN, _ACK = 0x02, 0x10
_NEW, _GOING_ON = (State.NEW, _SYN), (State.ESTABLISHED, _ACK)
_OUTPUT = ("filter", "OUTPUT")
_LOOKED_AT = {
    ("raw", "PREROUTING"): (_NEW, _GOING_ON),
    ("filter", "INPUT"): (_NEW, _GOING_ON),
    _OUTPUT: (_GOING_ON,),
}
_MOST_ANCESTORS = 64
_RTN_UNICAST, _RTN_LOCAL = 1, 2


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection from a peer to this host. Port 0 of the peer: any of the usual ones."""

    peer: Address
    peer_port: int
    local: Address
    local_port: int

    @property
    def family(self) -> Family:
        return Family.IPV4 if self.local.version == 4 else Family.IPV6

    def __str__(self) -> str:
        return f"{self.peer} → {self.local} port {self.local_port}"

    @property
    def words(self) -> str:
        """What `parse_connection` reads; the form of SSH_CONNECTION."""
        return f"{self.peer} {self.peer_port} {self.local} {self.local_port}"


@dataclass(frozen=True, slots=True)
class Loss:
    """A connection that the plan drops in a state, and the rule that does it (0: the policy).

    `answers`: it is this host's own packets of it that OUTPUT drops.
    """

    connection: Connection
    state: State
    rule: RuleRef
    answers: bool = False

    def __str__(self) -> str:
        what = "answers to" if self.answers else "packets of"
        return f"{self.state.name} {what} {self.connection} are dropped by {self.rule}"


def parse_connection(text: str) -> Connection:
    """`PEER PORT LOCAL PORT`, as SSH_CONNECTION has it; UsageError otherwise."""
    try:
        peer, peer_port, local, local_port = text.split()
        return Connection(_plain(peer), int(peer_port), _plain(local), int(local_port))
    except ValueError:
        raise UsageError(
            f"{text!r} is no connection", hint="as in '192.0.2.7 50022 192.0.2.1 22'"
        ) from None


def protected(text: str) -> Connection:
    """`ADDRESS:PORT`: who must go on reaching which TCP port of this host; UsageError if not so."""
    address, _, port = text.rpartition(":")
    try:
        peer = _plain(address.strip("[]"))
        number = int(port)
    except ValueError:
        raise UsageError(
            f"{text!r} is no address and port", hint="as in 192.0.2.7:22 or [2001:db8::7]:22"
        ) from None
    local = _route(peer)[1]
    if local is None:
        raise UsageError(f"there is no route to {peer}", hint="name an address that can be reached")
    return Connection(peer, 0, local, number)


def own_connections(pid: int) -> tuple[Connection, ...]:
    """Where the operator of a process comes from: SSH_CONNECTION of it or an ancestor.

    Without one, the peers of all sshd sockets in this network namespace.
    """
    for number in _ancestors(pid):
        if (found := _environment(number).get("SSH_CONNECTION")) is not None:
            try:
                return (parse_connection(found),)
            except UsageError:
                continue
    return tuple(_sshd_peers())


def losses(
    plans: Iterable[Plan], connections: Iterable[Connection], interfaces: Sequence[str]
) -> tuple[Loss, ...]:
    """The connections that the plans drop for certain when new or established.

    Their packets meet raw PREROUTING (which `bpfilter plan` has, not a deployment's plans) and
    filter INPUT, the answers to them filter OUTPUT.
    """
    found = []
    chains = {(plan.family, *key): chain for plan in plans for key, chain in plan.chains.items()}
    for connection in connections:
        device = _route(connection.peer)[0]
        names = (device,) if device in interfaces else tuple(interfaces)
        for key, looked_at in _LOOKED_AT.items():
            if (chain := chains.get((connection.family, *key))) is None:
                continue
            for state, flags in looked_at:
                rules = (_dropping(chain, connection, n or "", state, flags) for n in names)
                if (rule := next((r for r in rules if r is not None), None)) is not None:
                    found.append(Loss(connection, state, rule, key == _OUTPUT))
    return tuple(found)


def judging(prepared: Prepared) -> tuple[Plan, ...]:
    """All plans of a host: of the programs at the interfaces, and at OUTPUT."""
    return (*prepared.plans.values(), *prepared.outputs.values())


def refuse_losses(
    prepared: Prepared, connections: Iterable[Connection], interfaces: Sequence[str]
) -> None:
    """RolloutError that names the connection and the rule, if one would be lost."""
    found = losses(judging(prepared), connections, interfaces)
    if found:
        raise RolloutError(
            f"this could lock you out: {'; '.join(map(str, found))}",
            hint="let a rule accept this connection, or deploy with --accept-lockout",
        )


def _dropping(
    chain: ChainPlan, of: Connection, interface: str, state: State, flags: int
) -> RuleRef | None:
    flat = chain.flat
    packet = _packet(chain, of, interface, flags)
    ended, entry = walk(flat, packet, state)
    items = [flat.items[index] for index in ended.items]
    if any("ACCEPT" in item.verdicts for item in items):
        return None
    if _drops(ended) or (items and items[-1].terminal and items[-1].verdicts <= {"DROP"}):
        return flat.entries[entry].rule
    return None


def _drops(ended: Walk) -> bool:
    return ended.verdict is Verdict.DROP


def _packet(chain: ChainPlan, of: Connection, interface: str, flags: int) -> Packet:
    space = chain.flat.space
    ends = [(int(of.peer), of.peer_port or 50_000, _RTN_UNICAST),
            (int(of.local), of.local_port, _RTN_LOCAL)]  # fmt: skip
    if answers := (chain.flat.table, chain.flat.chain) == _OUTPUT:
        ends.reverse()
    (source, source_port, source_type), (destination, destination_port, destination_type) = ends
    fields: dict[Field, int] = dict.fromkeys(Field, 0)
    fields |= {
        Field.SOURCE: source,
        Field.DESTINATION: destination,
        Field.PROTOCOL: socket.IPPROTO_TCP,
        Field.SOURCE_PORT: source_port,
        Field.DESTINATION_PORT: destination_port,
        Field.TCP_FLAGS: flags,
        Field.OUT_INTERFACE if answers else Field.IN_INTERFACE: space.interface_class(interface),
        Field.LENGTH: 60 if of.family is Family.IPV4 else 80,
        Field.TTL: 64,
        Field.SOURCE_TYPE: source_type,
        Field.DESTINATION_TYPE: destination_type,
    }
    fields[Field.MASKS] = sum(
        (fields[field] & masked.mask == masked.value) << bit
        for bit, (field, masked) in enumerate(space.masks)
    )
    return fields


def _route(peer: Address) -> tuple[str | None, Address | None]:
    """The interface towards a peer, and the address of ours that it is reached from."""
    family = socket.AF_INET if peer.version == 4 else socket.AF_INET6
    with IPRoute() as ipr:
        try:
            (route,) = ipr.route("get", dst=str(peer), family=family)
            (link,) = ipr.get_links(route.get_attr("RTA_OIF"))
        except (NetlinkError, ValueError):
            return None, None
        source = route.get_attr("RTA_PREFSRC")
        return link.get_attr("IFLA_IFNAME"), None if source is None else _plain(source)


def _plain(text: str) -> Address:
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address


def _ancestors(pid: int) -> Iterator[int]:
    for _ in range(_MOST_ANCESTORS):
        if pid <= 0:
            return
        yield pid
        try:
            stat = (_PROC / str(pid) / "stat").read_text()
        except OSError:
            return
        pid = int(stat.rpartition(")")[2].split()[1])


def _environment(pid: int) -> Mapping[str, str]:
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (part.decode("utf-8", "replace").partition("=") for part in raw.split(b"\0"))
    return {name: value for name, _, value in pairs}


def _sshd_peers() -> Iterator[Connection]:
    inodes = {inode for pid in _sshd_processes() for inode in _sockets(pid)}
    if not inodes:
        return
    for table in ("tcp", "tcp6"):
        path = _PROC / "thread-self/net" / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[3] == _ESTABLISHED and int(words[9]) in inodes:
                local, local_port = _endpoint(words[1])
                peer, peer_port = _endpoint(words[2])
                yield Connection(peer, peer_port, local, local_port)


def _sshd_processes() -> Iterator[int]:
    for path in _PROC.glob("[0-9]*/comm"):
        try:
            if path.read_text().strip().startswith("sshd"):
                yield int(path.parent.name)
        except OSError:
            continue


def _sockets(pid: int) -> Iterator[int]:
    for path in (_PROC / str(pid) / "fd").glob("*"):
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _endpoint(text: str) -> tuple[Address, int]:
    """An address of proc_net_tcp(5): words in host byte order."""
    address, _, port = text.partition(":")
    words = struct.iter_unpack("=I", bytes.fromhex(address))
    packed = b"".join(struct.pack("!I", word) for (word,) in words)
    found: Address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    return _plain(str(found)), int(port, 16)
