"""Reading captures: pcap and pcapng, Ethernet only.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Frames come in the file's order, as
far as they were captured. CaptureError names the byte at which a file stops making sense.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from bpfilter.errors import CaptureError

ETHERNET = 1
_PCAP_MAGIC = {
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xd4\xc3\xb2\xa1": "<",
    b"\xa1\xb2\x3c\x4d": ">",
    b"\x4d\x3c\xb2\xa1": "<",
}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
_LARGEST_BLOCK = 1 << 28


def read_frames(path: Path) -> Iterator[bytes]:
    """All frames of a capture; CaptureError if it cannot be read to its end."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CaptureError(
            f"{path} cannot be read: {error.strerror}", hint="give a pcap or pcapng file"
        ) from None
    name = str(path)
    if data[:4] in _PCAP_MAGIC:
        return _pcap(data, _PCAP_MAGIC[data[:4]], name)
    if data[:4] == b"\x0a\x0d\x0d\x0a":
        return _pcapng(data, name)
    raise CaptureError(
        f"{name} is neither pcap nor pcapng", hint="tcpdump -w FILE writes what is read here"
    )


def _damaged(name: str, offset: int, what: str) -> CaptureError:
    return CaptureError(
        f"{name}: {what} at byte {offset}", hint="the file is damaged or was cut short"
    )


def _check_link_type(link_type: int, name: str) -> None:
    if link_type != ETHERNET:
        raise CaptureError(
            f"{name} has link type {link_type}, only Ethernet (1) can be evaluated",
            hint="capture on one Ethernet interface, not on `any`",
        )


def _pcap(data: bytes, order: str, name: str) -> Iterator[bytes]:
    if len(data) < 24:
        raise _damaged(name, 0, "incomplete file header")
    (link_type,) = struct.unpack_from(order + "I", data, 20)
    _check_link_type(link_type & 0x0FFFFFFF, name)
    offset = 24
    while offset < len(data):
        if offset + 16 > len(data):
            raise _damaged(name, offset, "incomplete record header")
        (captured,) = struct.unpack_from(order + "I", data, offset + 8)
        start = offset + 16
        if start + captured > len(data):
            raise _damaged(name, offset, f"record of {captured} bytes runs past the end")
        yield data[start : start + captured]
        offset = start + captured


def _pcapng(data: bytes, name: str) -> Iterator[bytes]:
    order = "<"
    interfaces: list[int] = []  # snapshot lengths
    offset = 0
    while offset < len(data):
        if data[offset : offset + 4] == b"\x0a\x0d\x0d\x0a":
            order = _section_order(data, offset, name)
            interfaces = []
        kind, body = _block(data, offset, order, name)
        if kind == _INTERFACE:
            if len(body) < 8:
                raise _damaged(name, offset, "incomplete interface block")
            link_type, _, snapshot = struct.unpack_from(order + "HHI", body)
            _check_link_type(link_type, name)
            interfaces.append(snapshot)
        elif kind in (_ENHANCED_PACKET, _OLD_PACKET, _SIMPLE_PACKET):
            yield _packet(kind, body, order, interfaces, offset, name)
        offset += len(body) + 12


def _section_order(data: bytes, offset: int, name: str) -> str:
    try:
        return _BYTE_ORDER[data[offset + 8 : offset + 12]]
    except KeyError:
        raise _damaged(name, offset, "section without byte order") from None


def _block(data: bytes, offset: int, order: str, name: str) -> tuple[int, bytes]:
    """A block's type and body, its padding included."""
    if offset + 12 > len(data):
        raise _damaged(name, offset, "incomplete block")
    kind, length = struct.unpack_from(order + "II", data, offset)
    if length < 12 or length % 4 or length > _LARGEST_BLOCK or offset + length > len(data):
        raise _damaged(name, offset, f"block of impossible length {length}")
    return kind, data[offset + 8 : offset + length - 4]


def _packet(
    kind: int, body: bytes, order: str, interfaces: list[int], offset: int, name: str
) -> bytes:
    if kind == _SIMPLE_PACKET:
        if len(body) < 4 or not interfaces:
            raise _damaged(name, offset, "packet without interface")
        (original,) = struct.unpack_from(order + "I", body)
        captured, start = min(original, interfaces[0] or original, len(body) - 4), 4
    else:
        if len(body) < 20:
            raise _damaged(name, offset, "incomplete packet block")
        layout = "I" if kind == _ENHANCED_PACKET else "H"
        (interface,) = struct.unpack_from(order + layout, body)
        (captured,) = struct.unpack_from(order + "I", body, 12)
        start = 20
        if interface >= len(interfaces):
            raise _damaged(name, offset, f"packet of unknown interface {interface}")
    if start + captured > len(body):
        raise _damaged(name, offset, f"packet of {captured} bytes runs past its block")
    return body[start : start + captured]
