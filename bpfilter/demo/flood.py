"""Measuring the time per packet: the kernel makes real packets and sends them through the server.

BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES turns one frame into many real ones, which a
four-instruction program redirects out of the client's interface; the server receives them through
its whole stack. Sender and receiver share a core: the wall time per packet is the cost of both.
Source: net/bpf/test_run.c (xdp_test_run_batch).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bpfilter.demo.network import CLIENT4, DEVICE, SERVER4, Network, inside
from bpfilter.demo.traffic import checksum
from bpfilter.kernel.syscall import bpf

_BPF_PROG_LOAD, _BPF_PROG_TEST_RUN = 5, 10
_PROG_TYPE_XDP, _ATTACH_XDP = 6, 37
_LIVE_FRAMES = 2
_BATCH = 64
_BPF_REDIRECT = 23
_SIOCETHTOOL, _ETHTOOL_SGRO = 0x8946, 0x2C
_SENDER = bytes.fromhex("020000000009")


def enable_gro(network: Network) -> None:
    """Switch GRO on at the server's interface: it makes veth take frames by NAPI."""
    with inside(network.server), socket.socket() as sock:
        value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_SGRO, 1))
        request = struct.pack("16sQ16x", DEVICE.encode(), ctypes.addressof(value))
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def udp_frame(network: Network, port: int, source_port: int = 40000) -> bytes:
    """A 60-byte UDP frame from the client to a port of the server."""
    with inside(network.server), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((DEVICE, 0))
        mac: bytes = sock.getsockname()[4]
    addresses = socket.inet_aton(CLIENT4) + socket.inet_aton(SERVER4)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 46, 0, 0x4000, 64, 17, 0)
    ip = head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses
    return (
        mac
        + _SENDER
        + b"\x08\x00"
        + ip
        + struct.pack("!HHHH", source_port, port, 26, 0)
        + bytes(18)
    )


@contextmanager
def flooder(network: Network) -> Iterator[Flooder]:
    """A loaded sender in the client's namespace."""
    with inside(network.client):
        descriptor = _load(socket.if_nametoindex("eth0"))
    try:
        yield Flooder(network, descriptor)
    finally:
        os.close(descriptor)


class Flooder:
    def __init__(self, network: Network, program: int) -> None:
        self._network = network
        self._program = program

    def nanoseconds(self, frames: Sequence[bytes], count: int, rounds: int = 3) -> float:
        """Wall time per packet over all frames, `count` packets each; the best of the rounds."""
        with inside(self._network.client):
            return min(self._round(frames, count) for _ in range(rounds))

    def _round(self, frames: Sequence[bytes], count: int) -> float:
        start = time.perf_counter_ns()
        for frame in frames:
            self._send(frame, count)
        return (time.perf_counter_ns() - start) / (count * len(frames))

    def _send(self, frame: bytes, count: int) -> None:
        data = ctypes.create_string_buffer(frame, len(frame))
        fields = (self._program, 0, len(frame), 0, ctypes.addressof(data), 0, count)
        bpf(
            _BPF_PROG_TEST_RUN,
            struct.pack("=IIIIQQI12xQQIII4x", *fields, 0, 0, _LIVE_FRAMES, 0, _BATCH),
        )


def _load(interface: int) -> int:
    def instruction(code: int, register: int, value: int) -> bytes:
        return struct.pack("=BBhi", code, register, 0, value)

    move, call, leave = 0xB7, 0x85, 0x95
    code = ctypes.create_string_buffer(
        instruction(move, 1, interface)
        + instruction(move, 2, 0)
        + instruction(call, 0, _BPF_REDIRECT)
        + instruction(leave, 0, 0)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    pointers = (ctypes.addressof(code), ctypes.addressof(licence))
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        _PROG_TYPE_XDP,
        4,
        *pointers,
        0,
        0,
        0,
        0,
        0,
        b"bpfilter_flood",
        0,
        _ATTACH_XDP,
    )
    return bpf(_BPF_PROG_LOAD, attributes)
