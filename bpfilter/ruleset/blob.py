"""The legacy tables as the kernel itself holds them, decoded far enough to compare two of them.

Sources: IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES in linux/netfilter_ipv4/ip_tables.h, and their like
for IPv6; `xt_data_to_user` in net/netfilter/x_tables.c, which zeroes what lies behind an
extension's `usersize` since Linux 4.11. Numbers are in the host's byte order.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bpfilter.errors import LiveReadError
from bpfilter.ruleset.fields import Family

_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
_ENTRIES = struct.Struct("=32sI4x")
_EXTENSION = struct.Struct("=H29sB")
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
_TRIES = 5


@dataclass(frozen=True, slots=True)
class _Layout:
    """Offsets in struct ipt_entry or ip6t_entry; `names`: of the interfaces and their masks."""

    domain: socket.AddressFamily
    level: int
    names: int
    fields: int
    target_offset: int
    elements: int


_LAYOUTS = {
    Family.IPV4: _Layout(socket.AF_INET, 0, 16, 84, 88, 112),
    Family.IPV6: _Layout(socket.AF_INET6, 41, 64, 133, 140, 168),
}
# Numbers that differ from namespace to namespace, as (offset, length): the index of an ipset
# (struct xt_set_info), the descriptor of a pinned program (struct xt_bpf_info_v1).
_LOCAL = {"set": ((0, 2),), "SET": ((0, 2), (4, 2), (8, 2)), "bpf": ((4, 4),)}

# Of a mask (struct xt_recent_mtinfo_v1, xt_connlimit_info) IPv4 reads four bytes, and only a mask
# that is an option of the rule clears the others.
_UNREAD4 = {"recent": ((216, 12),), "connlimit": ((4, 12),)}
# libxt_recent writes a name over "DEFAULT", and leaves what is longer (struct xt_recent_mtinfo).
_TEXTS = {"recent": (10, 210)}


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target: its name, its revision, and its user data without what is local."""

    name: str
    revision: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BlobRule:
    """`header`: addresses, interfaces, protocol and flags, masked; `target`: a verdict, a chain's
    name, `continue`, or an extension."""

    header: bytes
    matches: tuple[Extension, ...]
    target: str | Extension


Blob = Mapping[str, Sequence[BlobRule]]
"""Chain → its rules; the last one is the policy, or the end of a user chain."""


def open_socket(family: Family) -> socket.socket:
    """A socket for `read_blob` on the calling thread's namespace. LiveReadError without rights."""
    try:
        return socket.socket(_LAYOUTS[family].domain, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError as error:
        raise LiveReadError(
            f"the kernel's tables cannot be read: {error.strerror}", hint="run it as root"
        ) from None


def read_blob(asked: socket.socket, family: Family, table: str) -> Blob:
    """One table of the namespace in which the socket was opened; creates it if it is not there."""
    for _ in range(_TRIES):
        info = bytearray(_INFO.size)
        info[: len(table)] = table.encode()
        _getsockopt(asked, family, _GET_INFO, info)
        *hooks, _, size = _INFO.unpack(info)[1:]
        entries = bytearray(_ENTRIES.size + size)
        _ENTRIES.pack_into(entries, 0, table.encode(), size)
        try:
            _getsockopt(asked, family, _GET_ENTRIES, entries)
        except BlockingIOError:
            continue  # it was changed between the two calls
        starts = {hooks[1 + i]: name for i, name in enumerate(_HOOKS) if hooks[0] >> i & 1}
        return _decode(bytes(entries[_ENTRIES.size :]), _LAYOUTS[family], starts)
    raise LiveReadError(
        f"table {table} changes all the time", hint="run it again when its rules are at rest"
    )


def _getsockopt(asked: socket.socket, family: Family, option: int, buffer: bytearray) -> None:
    # socket.getsockopt passes no buffer in, and the kernel reads the table's name from it.
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_uint32(len(buffer))
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    level = _LAYOUTS[family].level
    if libc.getsockopt(asked.fileno(), level, option, memory, ctypes.byref(length)) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EAGAIN:
        raise BlockingIOError(number, os.strerror(number))
    raise LiveReadError(
        f"the kernel's own table cannot be read: {os.strerror(number)}",
        hint="run it as root; `iptables-legacy -S` must work",
    )


def _decode(blob: bytes, layout: _Layout, starts: Mapping[int, str]) -> Blob:
    offsets = list(_offsets(blob, layout))
    chains: dict[str, list[tuple[int, int]]] = {}
    begins: dict[int, str] = {}
    current: list[tuple[int, int]] = []
    for offset, end in offsets[:-1]:
        target = offset + _word(blob, offset + layout.target_offset)
        name = starts.get(offset)
        if _name(blob, target) == "ERROR":
            name = blob[target + 32 : end].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            begins[end] = name
            current = chains.setdefault(name, [])
            continue
        if name is not None:
            current = chains.setdefault(name, [])
        current.append((offset, end))
    return {
        name: [_rule(blob, offset, end, layout, begins) for offset, end in rules]
        for name, rules in chains.items()
    }


def _offsets(blob: bytes, layout: _Layout) -> Iterator[tuple[int, int]]:
    offset = 0
    while offset < len(blob):
        end = offset + _word(blob, offset + layout.target_offset + 2)
        yield offset, end
        offset = end


def _rule(
    blob: bytes, offset: int, end: int, layout: _Layout, begins: Mapping[int, str]
) -> BlobRule:
    target = offset + _word(blob, offset + layout.target_offset)
    matches = []
    place = offset + layout.elements
    while place < target:
        after = place + _word(blob, place)
        matches.append(_extension(blob, place, after, layout))
        place = after
    header = _header(blob[offset : offset + layout.fields], layout)
    if _name(blob, target):
        return BlobRule(header, tuple(matches), _extension(blob, target, end, layout))
    number = int(struct.unpack_from("=i", blob, target + 32)[0])
    verdict = "continue" if number == end else begins.get(number) or _VERDICTS[number]
    return BlobRule(header, tuple(matches), verdict)


def _header(fields: bytes, layout: _Layout) -> bytes:
    """Interface names count as far as their masks reach."""
    names, masks = layout.names, layout.names + 32
    seen = bytes(
        letter & mask
        for letter, mask in zip(fields[names:masks], fields[masks : masks + 32], strict=True)
    )
    return fields[:names] + seen + fields[masks:]


def _extension(blob: bytes, offset: int, end: int, layout: _Layout) -> Extension:
    _, _, revision = _EXTENSION.unpack_from(blob, offset)
    name = _name(blob, offset)
    data = bytearray(blob[offset + _EXTENSION.size : end])
    unread = _UNREAD4.get(name, ()) if layout.domain == socket.AF_INET else ()
    for start, length in (*_LOCAL.get(name, ()), *unread):
        data[start : start + length] = bytes(len(data[start : start + length]))
    if name in _TEXTS:
        start, stop = _TEXTS[name]
        text = bytes(data[start:stop]).split(b"\0", 1)[0]
        data[start:stop] = text.ljust(stop - start, b"\0")
    return Extension(name, revision, bytes(data))


def _name(blob: bytes, offset: int) -> str:
    return blob[offset + 2 : offset + 31].split(b"\0", 1)[0].decode("ascii", "replace")


def _word(blob: bytes, offset: int) -> int:
    return int(struct.unpack_from("=H", blob, offset)[0])
