"""Address types in the lab: the local table is made so that the packets have what they were drawn
for, then read back, and every packet gets the types that the kernel sees. Pure.

Types by net/ipv4/fib_frontend.c, __inet_dev_addr_type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from bpfilter.compiler.ir import FlatChain
from bpfilter.compiler.walk import Packet
from bpfilter.kernel.addresses import LocalRoute
from bpfilter.lab.conversation import Stimulus
from bpfilter.ruleset.fields import ADDRESS_TYPES, Family, Field

_PAIRS = ((Field.SOURCE, Field.SOURCE_TYPE), (Field.DESTINATION, Field.DESTINATION_TYPE))
_UNICAST, _BROADCAST, _MULTICAST = (
    ADDRESS_TYPES.index(name) for name in ("UNICAST", "BROADCAST", "MULTICAST")
)
_OTHERHOST = 3
_ALL = 0xFFFFFFFF
_LINK_LOCAL = 0xFE80 >> 6
_KINDS = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}


def wanted_addresses(flats: Iterable[FlatChain], stimuli: Iterable[Stimulus]) -> Mapping[int, str]:
    """IPv4 addresses to put into the local table, and as what.

    Only if some chain asks for types; the first packet with an address decides.
    """
    asked = {field for flat in flats for entry in flat.entries for field in entry.box}
    kinds: dict[int, str | None] = {}
    for stimulus in stimuli:
        for address, kind in _PAIRS:
            if kind in asked:
                kinds.setdefault(stimulus.packet[address], _KINDS.get(stimulus.packet[kind]))
    return {address: kind for address, kind in kinds.items() if kind is not None}


def unroutable(packet: Packet, family: Family, *, forwarded: bool) -> str | None:
    """Why the kernel never brings such a packet to INPUT, or to FORWARD; None if it does.

    By ip_route_input_slow (net/ipv4/route.c), ip_forward, ip6_rcv_core and ip6_forward.
    """
    kind = packet[Field.PACKET_TYPE]
    if kind == _OTHERHOST:
        return "for another host"
    if forwarded and kind:
        return "broadcast and multicast frames are not forwarded"
    if forwarded and packet[Field.TTL] == 0:
        return "TTL ended"
    martian = _martian4 if family is Family.IPV4 else _martian6
    if martian(packet[Field.SOURCE], packet[Field.DESTINATION], forwarded):
        return "addresses that the kernel does not route"
    return None


def _martian4(source: int, destination: int, forwarded: bool) -> bool:
    odd = source >> 24 == 0 or source >> 28 == 14 or source == _ALL or destination >> 24 == 0
    return odd or (forwarded and (destination >> 28 == 14 or destination == _ALL))


def _martian6(source: int, destination: int, forwarded: bool) -> bool:
    mapped, group = source >> 32 == 0xFFFF, source >> 120 == 0xFF
    narrow = destination >> 120 == 0xFF and destination >> 112 & 15 in (0, 1)
    if mapped or group or narrow or source == 1 or destination == 1:
        return True
    local = any(address >> 118 == _LINK_LOCAL for address in (source, destination))
    return forwarded and (local or source == 0 or destination == 0 or destination >> 120 == 0xFF)


def asks_for_types(flats: Iterable[FlatChain]) -> bool:
    """Whether some rule matches address types."""
    kinds = {kind for _, kind in _PAIRS}
    return any(kinds & entry.box.keys() for flat in flats for entry in flat.entries)


def typed(
    stimuli: Sequence[Stimulus], routes: Sequence[LocalRoute], family: Family
) -> tuple[Stimulus, ...]:
    """The packets with the types that their addresses have by this local table."""
    if family is not Family.IPV4:
        return tuple(stimuli)
    type_of = address_types(routes)
    return tuple(
        replace(s, packet={**s.packet, **{k: type_of(s.packet[a]) for a, k in _PAIRS}})
        for s in stimuli
    )


def address_types(routes: Sequence[LocalRoute]) -> Callable[[int], int]:
    """The RTN_* number of any IPv4 address."""
    exact: dict[int, dict[int, int]] = {}
    for route in routes:
        if route.family is Family.IPV4:
            shift = 32 - route.prefix_length
            prefix = int.from_bytes(route.address, "big") >> shift
            exact.setdefault(shift, {})[prefix] = route.kind
    shifts = sorted(exact)

    def type_of(address: int) -> int:
        if address >> 24 == 0 or address == 0xFFFFFFFF:
            return _BROADCAST
        if address >> 28 == 14:
            return _MULTICAST
        kinds = (exact[shift].get(address >> shift) for shift in shifts)
        return next((kind for kind in kinds if kind is not None), _UNICAST)

    return type_of
