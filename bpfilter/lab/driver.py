"""Many packets of chosen headers: run through a TC program, or sent for real through interfaces.

BPF_PROG_RUN calls a program (bpf_templates/driver.bpf.c) that writes the next header into a packet
and tail-calls the program under test, or redirects the packet out of an interface; an empty program
measures the harness alone. Source: net/bpf/test_run.c (xdp_test_run_batch).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import statistics
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from bpfilter.errors import LabError
from bpfilter.kernel.libbpf import BpfObject
from bpfilter.kernel.program import TEMPLATES
from bpfilter.kernel.syscall import (
    PROG_TEST_RUN,
    RunAttributes,
    bpf,
    map_update,
    map_update_batch,
    run_program,
)

FRAMES = {60: "4", 78: "6"}
"""Lengths of frames that the programs can write: Ethernet with IPv4, and with IPv6 and TCP."""

_FRAME = struct.Struct("=80sII")
_ZERO = struct.pack("=I", 0)
_LIVE_FRAMES, _BATCH = 2, 64
_LEAST = 2_000
_SIOCETHTOOL, _ETHTOOL_SGRO = 0x8946, 0x2C


@dataclass(frozen=True, slots=True)
class Timing:
    """ns per packet, the harness subtracted: best and median round; and the harness's own best.

    On a host that others share, the best round says what the code costs, and the median what it
    cost then.
    """

    best: float
    median: float
    floor: float


class Driver:
    """The loaded driver with its frames; closing it frees everything."""

    def __init__(self, frames: Sequence[bytes], interfaces: Sequence[int] = (0,)) -> None:
        """`frames` are of one length; `interfaces`: where each is sent, the last for all others.

        LabError for a length that is not in FRAMES.
        """
        lengths = {len(frame) for frame in frames}
        if len(lengths) != 1 or not lengths <= FRAMES.keys():
            raise LabError(
                f"frames of {sorted(lengths)} bytes cannot be driven",
                hint=f"all must have the same length, one of {sorted(FRAMES)}",
            )
        self._object = BpfObject.loaded(
            TEMPLATES / "driver.bpf.o",
            lambda opened: opened.set_map("frames", max_entries=len(frames)),
        )
        self.frame = frames[0]
        self._kind = FRAMES[len(self.frame)]
        keys = b"".join(struct.pack("=I", index) for index in range(len(frames)))
        out = [*interfaces, *[interfaces[-1]] * (len(frames) - len(interfaces))]
        values = b"".join(_FRAME.pack(*each, 0) for each in zip(frames, out, strict=True))
        map_update_batch(self._object.map_fd("frames"), keys, values, len(frames))
        map_update(self._object.map_fd("cursors"), _ZERO, struct.pack("=II", 0, len(frames)))

    def measure(self, program: int, *, repeat: int, rounds: int) -> Timing:
        """ns per packet of a TC program; rounds with and without it take turns."""
        drive = self._object.program_fd(f"drive{self._kind}")
        nothing = self._object.program_fd("nothing")
        taken: dict[int, list[int]] = {program: [], nothing: []}
        for _ in range(rounds):
            for target, times in taken.items():
                map_update(self._object.map_fd("under_test"), _ZERO, struct.pack("=I", target))
                times.append(run_program(drive, self.frame, repeat=repeat).duration)
        whole, floor = taken[program], taken[nothing]
        return Timing(
            best=min(whole) - min(floor),
            median=statistics.median(whole) - statistics.median(floor),
            floor=min(floor),
        )

    def send(self, count: int) -> int:
        """Send that many packets, from this thread's network namespace; nanoseconds for each.

        By the kernel's clock, until all were received: sender and receiver share one core, if
        the receiving interface takes packets by NAPI (see `take_by_napi`).
        """
        data = ctypes.create_string_buffer(self.frame, len(self.frame))
        attributes = RunAttributes(
            prog_fd=self._object.program_fd(f"flood{self._kind}"),
            data_size_in=len(self.frame),
            data_in=ctypes.addressof(data),
            repeat=count,
            flags=_LIVE_FRAMES,
            batch_size=_BATCH,
        )
        bpf(PROG_TEST_RUN, attributes, "send packets")
        return int(attributes.duration)

    def fitting(self, seconds: float) -> int:
        """How many packets take about so long to send."""
        count = _LEAST
        while (spent := self.send(count) * count / 1e9) < seconds / 4:
            count *= 4
        return max(_LEAST, int(count * seconds / spent))

    @property
    def drop(self) -> int:
        """An XDP program that drops everything."""
        return self._object.program_fd("drop")

    @property
    def shot(self) -> int:
        """A TC program that drops everything."""
        return self._object.program_fd("shot")

    def close(self) -> None:
        self._object.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def take_by_napi(name: str) -> None:
    """Switch GRO on at a veth of this thread's network namespace: it then takes frames by NAPI."""
    with socket.socket() as sock:
        value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_SGRO, 1))
        device = name.encode("utf-8", "surrogateescape")
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sQ16x", device, ctypes.addressof(value)))
