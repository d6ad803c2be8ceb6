"""Captures of either format are read whole, or refused with the byte at which they break."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, wrpcap

from bpfilter.errors import CaptureError
from bpfilter.lab.pcap import read_frames

FRAMES = [bytes([number] * size) for number, size in enumerate((60, 61, 62, 1500, 14), 1)]


def pcap(order: str = "<", link: int = 1, magic: int = 0xA1B2C3D4) -> bytes:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for frame in FRAMES:
        data += struct.pack(order + "IIII", 1, 2, len(frame), len(frame)) + frame
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return (
        struct.pack(order + "II", kind, len(body) + 12)
        + body
        + struct.pack(order + "I", len(body) + 12)
    )


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int = 1, snapshot: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, snapshot))


def enhanced(order: str, frame: bytes, number: int = 0) -> bytes:
    head = struct.pack(order + "IIIII", number, 0, 0, len(frame), len(frame))
    return block(order, 6, head + frame)


def read(tmp_path: Path, data: bytes) -> list[bytes]:
    path = tmp_path / "x.pcap"
    path.write_bytes(data)
    return list(read_frames(path))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_pcap_of_both_byte_orders_and_clocks(tmp_path: Path, order: str, magic: int) -> None:
    assert read(tmp_path, pcap(order, magic=magic)) == FRAMES


@pytest.mark.parametrize("order", "<>")
def test_pcapng_blocks_of_every_kind(tmp_path: Path, order: str) -> None:
    old = struct.pack(order + "HHIIII", 0, 0, 0, 0, 4, 9) + b"abcd"
    data = (
        section(order)
        + interface(order)
        + enhanced(order, FRAMES[0])
        + block(order, 0x0BAD, b"unknown blocks are passed over")
        + block(order, 3, struct.pack(order + "I", len(FRAMES[1])) + FRAMES[1])
        + block(order, 2, old)
    )
    assert read(tmp_path, data) == [FRAMES[0], FRAMES[1], b"abcd"]


def test_sections_of_different_byte_order(tmp_path: Path) -> None:
    data = b"".join(
        section(order) + interface(order) + enhanced(order, FRAMES[0]) for order in "<><"
    )
    assert read(tmp_path, data) == [FRAMES[0]] * 3


def test_simple_packets_are_cut_at_the_snapshot_length(tmp_path: Path) -> None:
    data = section("<") + interface("<", snapshot=20)
    data += block("<", 3, struct.pack("<I", 60) + FRAMES[0][:20])
    assert read(tmp_path, data) == [FRAMES[0][:20]]


def test_files_written_by_scapy(tmp_path: Path) -> None:
    packets = [Ether(frame) for frame in FRAMES[:3]]
    wrpcap(str(tmp_path / "a.pcap"), packets)
    assert list(read_frames(tmp_path / "a.pcap")) == FRAMES[:3]
    with PcapNgWriter(str(tmp_path / "b.pcapng")) as writer:
        for packet in packets:
            writer.write(packet)
    assert list(read_frames(tmp_path / "b.pcapng")) == FRAMES[:3]


def test_an_empty_capture_has_no_frames(tmp_path: Path) -> None:
    assert read(tmp_path, pcap()[:24]) == []


@pytest.mark.parametrize(
    "make", [lambda link: pcap(link=link), lambda link: section("<") + interface("<", link)]
)
@pytest.mark.parametrize("link", [0, 101, 113, 276])
def test_other_link_types_are_refused(
    tmp_path: Path, make: Callable[[int], bytes], link: int
) -> None:
    with pytest.raises(CaptureError, match=f"link type {link}, only Ethernet"):
        read(tmp_path, make(link))


@pytest.mark.parametrize("cut", [10, 30, 45, 110])
def test_pcap_cut_short_names_the_byte(tmp_path: Path, cut: int) -> None:
    with pytest.raises(CaptureError, match=r"at byte \d+"):
        read(tmp_path, pcap()[:cut])


DAMAGED = {
    "block length that is no multiple of four": section("<") + struct.pack("<III", 6, 13, 0),
    "block that runs past the end": section("<") + struct.pack("<III", 6, 4000, 0),
    "block shorter than its head": section("<") + struct.pack("<III", 6, 8, 0),
    "packet before its interface": section("<") + enhanced("<", FRAMES[0]),
    "packet of an unknown interface": section("<") + interface("<") + enhanced("<", b"x", 7),
    "packet longer than its block": section("<")
    + interface("<")
    + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 5000, 5000) + bytes(8)),
    "section without byte order": struct.pack("<II", 0x0A0D0D0A, 28) + bytes(20),
    "half a block head": section("<") + b"\1\0\0\0",
    "interface block without content": section("<") + block("<", 1, b""),
    "packet block without content": section("<") + interface("<") + block("<", 6, b""),
    "simple packet without interface": section("<") + block("<", 3, bytes(8)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pcapng_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaptureError, match="at byte"):
        read(tmp_path, DAMAGED[name])


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"*filter\n", b"\x7fELF"):
        with pytest.raises(CaptureError, match="neither pcap nor pcapng"):
            read(tmp_path, data)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CaptureError, match="cannot be read"):
            read_frames(path)
