"""Measuring the time per packet: the kernel makes real packets and sends them through the server.

BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES turns one frame into many real ones, which a
four-instruction program redirects out of the client's interface; the server receives them through
its whole stack. Sender and receiver share a core: the time per packet is the cost of both.
Source: net/bpf/test_run.c (xdp_test_run_batch).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from bpfilter.demo.network import DEVICE, FLOOD4, SERVER4, Network, inside
from bpfilter.demo.traffic import checksum
from bpfilter.kernel.syscall import PROG_TEST_RUN, RunAttributes, bpf
from bpfilter.lab.driver import take_by_napi

_BPF_PROG_LOAD = 5
_PROG_TYPE_XDP, _ATTACH_XDP = 6, 37
_LIVE_FRAMES = 2
_BATCH = 64
_BPF_REDIRECT = 23
_SENDER = bytes.fromhex("020000000009")


def enable_gro(network: Network) -> None:
    """Switch GRO on at the server's interface: it makes veth take frames by NAPI."""
    with inside(network.server):
        take_by_napi(DEVICE)


def udp_frame(network: Network, port: int, source_port: int = 40000) -> bytes:
    """A 60-byte UDP frame from `FLOOD4` to a port of the server."""
    with inside(network.server), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((DEVICE, 0))
        mac: bytes = sock.getsockname()[4]
    addresses = socket.inet_aton(FLOOD4) + socket.inet_aton(SERVER4)
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

    def nanoseconds(self, frame: bytes, count: int, rounds: int = 5) -> int:
        """Time per packet in the best of so many rounds of `count` packets.

        As the kernel measures it: without setting up, and without the time of other processes.
        """
        with inside(self._network.client):
            return min(self._send(frame, count) for _ in range(rounds))

    def _send(self, frame: bytes, count: int) -> int:
        data = ctypes.create_string_buffer(frame, len(frame))
        attributes = RunAttributes(
            prog_fd=self._program,
            data_size_in=len(frame),
            data_in=ctypes.addressof(data),
            repeat=count,
            flags=_LIVE_FRAMES,
            batch_size=_BATCH,
        )
        bpf(PROG_TEST_RUN, attributes, "send packets")
        return int(attributes.duration)


class _Load(ctypes.Structure):
    """The members of union bpf_attr for BPF_PROG_LOAD, as far as an XDP program needs them."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("instructions", ctypes.c_uint32),
        ("code", ctypes.c_uint64),
        ("licence", ctypes.c_uint64),
        ("log", ctypes.c_uint32 * 4),
        ("version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("interface", ctypes.c_uint32),
        ("attach", ctypes.c_uint32),
    )


def _load(interface: int) -> int:
    """r1 = interface; r2 = 0; bpf_redirect(); exit."""
    words = ((0xB7, 1, interface), (0xB7, 2, 0), (0x85, 0, _BPF_REDIRECT), (0x95, 0, 0))
    text = b"".join(
        struct.pack("=BBhi", code, register, 0, value) for code, register, value in words
    )
    code = ctypes.create_string_buffer(text, len(text))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = _Load(
        kind=_PROG_TYPE_XDP,
        instructions=len(words),
        code=ctypes.addressof(code),
        licence=ctypes.addressof(licence),
        name=b"bpfilter_flood",
        attach=_ATTACH_XDP,
    )
    return bpf(_BPF_PROG_LOAD, attributes, "load the packet sender")
