"""The lab's frames are what an independent encoder and decoder take them for."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from bpfilter.compiler.layout import AXES
from bpfilter.lab.packets import Shape, can_encode, crc32c, decidable, decode, encode
from bpfilter.ruleset.fields import Family, Field

MAC = bytes.fromhex("02bf00000007")
DECODED = frozenset(
    {
        Field.SOURCE, Field.DESTINATION, Field.PROTOCOL, Field.SOURCE_PORT, Field.DESTINATION_PORT,
        Field.TCP_FLAGS, Field.ICMP_TYPE, Field.LENGTH, Field.TTL, Field.TOS, Field.MAC_SOURCE,
    }
)  # fmt: skip


def packet(family: Family, protocol: int, **values: int) -> dict[Field, int]:
    width = 32 if family is Family.IPV4 else 128
    source = random.Random(f"{family}{protocol}{values}")
    fields = dict.fromkeys((*AXES, Field.FRAGMENT), 0)
    fields |= {
        Field.SOURCE: source.getrandbits(width),
        Field.DESTINATION: source.getrandbits(width),
        Field.PROTOCOL: protocol,
        Field.LENGTH: 100,
        Field.TTL: 64,
        Field.TOS: 0x2E,
        Field.MAC_SOURCE: 0x020000000001,
    }
    return fields | {Field[name]: value for name, value in values.items()}


PACKETS = [
    {"protocol": 6, "SOURCE_PORT": 1024, "DESTINATION_PORT": 22, "TCP_FLAGS": 0x12},
    {"protocol": 17, "SOURCE_PORT": 53, "DESTINATION_PORT": 65535},
    {"protocol": 132, "SOURCE_PORT": 7, "DESTINATION_PORT": 8},
    {"protocol": 33, "SOURCE_PORT": 7, "DESTINATION_PORT": 8},
    {"protocol": 136, "SOURCE_PORT": 7, "DESTINATION_PORT": 8},
    {"protocol": 47},
]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("values", PACKETS, ids=lambda values: str(values["protocol"]))
@pytest.mark.parametrize("length", [60, 101, 1400, 9000])
def test_decoding_a_frame_gives_its_fields_and_number(family, values, length):
    fields = packet(family, **values, LENGTH=length)
    frame = encode(fields, family, 4711, MAC)
    shown, number = decode(frame)
    assert number == 4711
    assert shown == {field: fields[field] for field in DECODED}
    assert len(frame) == 14 + length


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("protocol", "layer"), [(6, TCP), (17, UDP)])
def test_scapy_computes_the_same_checksums(family, protocol, layer):
    frame = encode(packet(family, protocol, SOURCE_PORT=5, DESTINATION_PORT=6), family, 1, MAC)
    parsed = Ether(frame)
    given = parsed[layer].chksum
    del parsed[layer].chksum
    if family is Family.IPV4:
        head = parsed[IP].chksum
        del parsed[IP].chksum
        assert Ether(bytes(parsed))[IP].chksum == head
    assert Ether(bytes(parsed))[layer].chksum == given


def test_scapy_computes_the_same_icmp_checksum():
    frame = encode(packet(Family.IPV4, 1, ICMP_TYPE=8 << 8), Family.IPV4, 1, MAC)
    parsed = Ether(frame)
    given = parsed[ICMP].chksum
    del parsed[ICMP].chksum
    assert Ether(bytes(parsed))[ICMP].chksum == given


def test_sctp_carries_its_crc():
    frame = encode(packet(Family.IPV4, 132, SOURCE_PORT=5, DESTINATION_PORT=6), Family.IPV4, 1, MAC)
    body = bytes(Ether(frame)[IP].payload)
    assert Ether(frame).haslayer(SCTP)
    assert body[8:12] == crc32c(body[:8] + bytes(4) + body[12:]).to_bytes(4, "little")
    assert crc32c(b"123456789") == 0xE3069283


def test_a_corrupt_frame_has_another_checksum():
    fields = packet(Family.IPV4, 6, SOURCE_PORT=5, DESTINATION_PORT=6)
    good, bad = (encode(fields, Family.IPV4, 1, MAC, corrupt=corrupt) for corrupt in (False, True))
    assert Ether(good)[TCP].chksum != Ether(bad)[TCP].chksum


def test_the_packet_type_chooses_the_destination_address():
    fields = packet(Family.IPV6, 17)
    for kind, first in ((0, MAC), (1, b"\xff" * 6)):
        assert encode({**fields, Field.PACKET_TYPE: kind}, Family.IPV6, 1, MAC)[:6] == first
    assert encode({**fields, Field.PACKET_TYPE: 2}, Family.IPV6, 1, MAC)[0] & 1


def test_forwarded_packets_leave_with_the_ttl_that_the_hook_will_see_plus_one():
    fields = packet(Family.IPV6, 17)
    assert Ether(encode(fields, Family.IPV6, 1, MAC, forwarded=True))[IPv6].hlim == 65
    assert not can_encode({**fields, Field.TTL: 255}, Family.IPV6, forwarded=True)


def test_a_packet_shorter_than_its_header_cannot_be_encoded():
    assert not can_encode(packet(Family.IPV4, 17, LENGTH=19), Family.IPV4)
    assert can_encode(packet(Family.IPV4, 17, LENGTH=20), Family.IPV4)
    assert len(encode(packet(Family.IPV4, 17, LENGTH=23), Family.IPV4, 1, MAC)) == 37


def test_a_frame_that_is_not_ip_is_refused():
    with pytest.raises(ValueError, match="neither"):
        decode(bytes(60))


def test_options_and_fragments_are_what_scapy_takes_them_for():
    fields = packet(Family.IPV4, 6, SOURCE_PORT=5, DESTINATION_PORT=6)
    options = Ether(encode(fields, Family.IPV4, 1, MAC, shape=Shape.OPTIONS))
    assert (options[IP].ihl, options[IP].len, options[TCP].dport) == (6, 100, 6)
    given = options[IP].chksum
    del options[IP].chksum
    assert Ether(bytes(options))[IP].chksum == given
    fragment = Ether(encode(fields, Family.IPV4, 1, MAC, shape=Shape.FRAGMENT))
    assert (int(fragment[IP].flags), fragment[IP].frag) == (1, 0)


def test_ipv6_options_and_fragments_are_extension_headers():
    fields = packet(Family.IPV6, 17, SOURCE_PORT=5, DESTINATION_PORT=6)
    options = Ether(encode(fields, Family.IPV6, 1, MAC, shape=Shape.OPTIONS))
    assert options[IPv6].plen == 60
    assert options[IPv6ExtHdrDestOpt].nh == 17
    assert options[UDP].dport == 6
    given = options[UDP].chksum
    del options[UDP].chksum
    assert Ether(bytes(options))[UDP].chksum == given
    fragment = Ether(encode(fields, Family.IPV6, 1, MAC, shape=Shape.FRAGMENT))
    assert (fragment[IPv6ExtHdrFragment].m, fragment[IPv6ExtHdrFragment].offset) == (1, 0)


@pytest.mark.parametrize("family", list(Family))
def test_padding_lies_behind_the_packet(family):
    fields = packet(family, 17, SOURCE_PORT=5, DESTINATION_PORT=6)
    plain, padded = (encode(fields, family, 1, MAC, shape=s) for s in (Shape.PLAIN, Shape.PADDED))
    assert padded.startswith(plain)
    assert len(padded) > len(plain)
    assert decode(padded) == decode(plain)


def test_ipv4_options_and_fragments_are_never_decided():
    assert not decidable(Shape.OPTIONS, Family.IPV4)
    assert decidable(Shape.OPTIONS, Family.IPV6)
    assert not any(decidable(Shape.FRAGMENT, family) for family in Family)


def test_padding_must_fit_the_longest_frame() -> None:
    fields = packet(Family.IPV4, 17, LENGTH=65530)
    assert can_encode(fields, Family.IPV4)
    assert not can_encode(fields, Family.IPV4, shape=Shape.PADDED)
