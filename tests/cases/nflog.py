"""A listener of an NFLOG group, as linux/netfilter/nfnetlink_log.h describes it."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

_NETLINK_NETFILTER, _ULOG = 12, 4 << 8
_PACKET, _CONFIG = 0, 1
_CFG_CMD, _CFG_MODE, _BIND, _COPY_META = 1, 2, 1, 1
_NFULA_MARK = 2


class NflogGroup:
    """Receives what rules of the current network namespace send to a group."""

    def __init__(self, group: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(5)
        self._configure(group, struct.pack("=HHB3x", 5, _CFG_CMD, _BIND))
        self._configure(group, struct.pack("=HH", 10, _CFG_MODE) + struct.pack(">IBB2x", 0, 1, 0))

    def __enter__(self) -> NflogGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _configure(self, group: int, attribute: bytes) -> None:
        body = struct.pack(">BBH", socket.AF_INET, 0, group) + attribute
        flags = 1 | 4  # NLM_F_REQUEST | NLM_F_ACK
        header = struct.pack("=IHHII", 16 + len(body), _ULOG | _CONFIG, flags, 1, 0)
        self._socket.send(header + body)
        answer = self._socket.recv(4096)
        (error,) = struct.unpack_from("=i", answer, 16)
        assert error == 0, f"NFLOG group {group}: errno {-error}"

    def marks(self, count: int) -> list[int | None]:
        """The marks of the next `count` packets, None for those without one."""
        found: list[int | None] = []
        with suppress(TimeoutError):
            while len(found) < count:
                found += _marks(self._socket.recv(65536))
        return found


def _marks(data: bytes) -> list[int | None]:
    marks = []
    while len(data) >= 20:
        length, kind = struct.unpack_from("=IH", data)
        if kind == _ULOG | _PACKET:
            marks.append(_attributes(data[20:length]).get(_NFULA_MARK))
        data = data[(length + 3) & ~3 :]
    return marks


def _attributes(data: bytes) -> dict[int, int]:
    """Attributes that hold a 32-bit number."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length == 8:
            (found[kind & 0x3FFF],) = struct.unpack_from(">I", data, 4)
        data = data[(length + 3) & ~3 :]
    return found
