"""A listener of NFQUEUE, over netlink (linux/netfilter/nfnetlink_queue.h)."""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 3 << 8
_PACKET, _VERDICT, _CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_REQUEST = 1
_BIND, _COPY_META = 1, 1
_ACCEPT = 1
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Queue:
    """Listens to one queue of this thread's network namespace; packets wait for `accept`."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.settimeout(10)

    def __enter__(self) -> Queue:
        self._socket.bind((0, 0))
        self._send(_CONFIG, 1, struct.pack(">BBH", _BIND, 0, socket.AF_UNSPEC))
        self._send(_CONFIG, 2, struct.pack(">IB", 0, _COPY_META))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def accept(self, count: int) -> None:
        """Let so many packets go on, in the order they came."""
        for _ in range(count):
            self._send(_VERDICT, 2, struct.pack(">II", _ACCEPT, self._next()))

    def _next(self) -> int:
        while True:
            message = self._socket.recv(65536)
            if _HEADER.unpack_from(message)[1] == _PACKET:
                offset = _HEADER.size + 4
                _, kind = _ATTRIBUTE.unpack_from(message, offset)
                assert kind == 1
                (number,) = struct.unpack_from(">I", message, offset + _ATTRIBUTE.size)
                return int(number)

    def _send(self, kind: int, attribute: int, value: bytes) -> None:
        padded = value + bytes(-len(value) % 4)
        body = struct.pack(">BBH", socket.AF_UNSPEC, 0, self._number)
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), attribute) + padded
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST, 0, 0)
        self._socket.send(header + body)
