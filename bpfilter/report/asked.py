"""Packets as people name them: `tcp 203.0.113.7:40000 10.0.0.5:22`, or the bytes of a frame."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from bpfilter.analysis.explain import Question
from bpfilter.errors import UsageError
from bpfilter.lab.packets import ETHERNET, decode
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, State
from bpfilter.ruleset.matches.common import BadWord, port
from bpfilter.ruleset.matches.header import protocol_number
from bpfilter.ruleset.matches.icmp import icmp_type
from bpfilter.ruleset.matches.ports import flags as tcp_flags

PORTED = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_ICMP = {Family.IPV4: 1, Family.IPV6: 58}
_SYN, _ACK = 0x02, 0x10
_ECHO_REQUEST = {Family.IPV4: 8 << 8, Family.IPV6: 128 << 8}
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_BROADCAST, _MULTICAST = 1, 2
_CHAINS = {
    "INPUT": ("filter", "INPUT"),
    "FORWARD": ("filter", "FORWARD"),
    "OUTPUT": ("filter", "OUTPUT"),
    "PREROUTING": ("raw", "PREROUTING"),
}

Address = IPv4Address | IPv6Address


def hook_of(chain: str | None, in_interface: str, out_interface: str) -> tuple[str, str]:
    """The named chain, else by the interfaces: both FORWARD, only out OUTPUT, else INPUT."""
    if chain is not None:
        try:
            return _CHAINS[chain]
        except KeyError:
            raise UsageError(
                f"{chain!r} is no chain that is translated", hint=", ".join(_CHAINS)
            ) from None
    if out_interface:
        return _CHAINS["FORWARD" if in_interface else "OUTPUT"]
    return _CHAINS["INPUT"]


def asked_packet(
    protocol: str,
    source: str,
    destination: str,
    *,
    chain: str | None = None,
    in_interface: str = "",
    out_interface: str = "",
    flags: str | None = None,
    icmp: str | None = None,
    length: int | None = None,
    ttl: int | None = None,
    tos: int | None = None,
    mac: str | None = None,
    states: int = ALL_STATES,
) -> Question:
    """A packet in the words of iptables; UsageError names the word that makes no sense.

    Addresses are `A`, `A:PORT` or `[A6]:PORT`. TCP has SYN set where only NEW is asked for or
    nothing is said, ICMP is an echo request.
    """
    try:
        number = protocol_number(protocol)
        (one, sport), (two, dport) = _endpoint(source, number), _endpoint(destination, number)
        if one.version != two.version:
            raise BadWord("source and destination are of two families", f"{source} {destination}")
        family = Family.IPV4 if one.version == 4 else Family.IPV6
        if number in _ICMP.values():
            number = _ICMP[family]
        fields = {
            Field.PROTOCOL: number,
            Field.SOURCE: int(one),
            Field.DESTINATION: int(two),
            Field.SOURCE_PORT: sport,
            Field.DESTINATION_PORT: dport,
        }
        if number == 6:
            beginning = states & State.NEW
            fields[Field.TCP_FLAGS] = _flags(flags, _SYN if beginning else _ACK)
        if number == _ICMP[family]:
            fields[Field.ICMP_TYPE] = _icmp(icmp, family)
        named = {Field.LENGTH: length, Field.TTL: ttl, Field.TOS: tos, Field.MAC_SOURCE: _mac(mac)}
        fields |= {field: value for field, value in named.items() if value is not None}
    except BadWord as error:
        raise UsageError(
            f"{error.word!r}: {error}", hint=error.hint or "as in tcp 10.0.0.1:40000 10.0.0.2:22"
        ) from None
    hook = hook_of(chain, in_interface, out_interface)
    return Question(family, hook, fields, in_interface, out_interface, states)


def _endpoint(text: str, protocol: int) -> tuple[Address, int]:
    """An address and its port, 0 if there is none."""
    host, word = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        word = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, word = text.partition(":")
    try:
        address = ip_address(host)
    except ValueError:
        raise BadWord("not an address", text, "as in 10.0.0.5:22 or [2001:db8::5]:22") from None
    if not word:
        return address, 0
    if protocol not in PORTED:
        raise BadWord("this protocol has no ports", text)
    return address, port(word, PORTED[protocol])


def _flags(text: str | None, default: int) -> int:
    return default if text is None else tcp_flags(text)


def _icmp(text: str | None, family: Family) -> int:
    return _ECHO_REQUEST[family] if text is None else icmp_type(text, family)


def _mac(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        raw = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise BadWord("not a MAC address", text, "as in 02:00:00:00:00:01")
    return int.from_bytes(raw, "big")


def frame_packet(
    frame: bytes,
    *,
    chain: str | None = None,
    in_interface: str = "",
    out_interface: str = "",
    states: int = ALL_STATES,
) -> Question:
    """The packet in an Ethernet frame as its hook would see it (FORWARD: after the decrement).

    UsageError for what the program leaves to iptables by its shape.
    """
    hook = hook_of(chain, in_interface, out_interface)
    try:
        wire, _ = decode(frame)
    except ValueError as error:
        raise UsageError(
            f"the frame cannot be explained: {error}",
            hint="the program leaves such packets to iptables; `bpfilter eval` says why",
        ) from None
    fields = dict(wire)
    if hook[1] == "FORWARD":
        fields[Field.TTL] = max(fields[Field.TTL] - 1, 0)
    fields[Field.PACKET_TYPE] = _packet_type(frame[:6])
    family = Family.IPV4 if frame[12:14] == _ETHERTYPE[4] else Family.IPV6
    return Question(family, hook, fields, in_interface, out_interface, states)


def _packet_type(destination: bytes) -> int:
    if destination == b"\xff" * 6:
        return _BROADCAST
    return _MULTICAST if destination[0] & 1 else 0


def header_frame(header: bytes) -> bytes:
    """A frame around a packet that is kept from its network header on."""
    return bytes(ETHERNET - 2) + _ETHERTYPE.get(header[0] >> 4 if header else 0, b"\0\0") + header


def sample_packet(sample: Mapping[str, str]) -> Question:
    """The packet of a mismatch, as `rollout.evidence` keeps it, in the state that it had."""
    return frame_packet(
        header_frame(bytes.fromhex(sample["header"])),
        in_interface=sample["in"],
        out_interface=sample["out"],
        states=State[sample["state"]],
    )
