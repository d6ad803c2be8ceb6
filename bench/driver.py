"""Runs a TC program on changing packets by BPF_PROG_RUN, and the harness alone for comparison."""

from __future__ import annotations

import shutil
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.frames import FRAME
from bpfilter.errors import KernelError
from bpfilter.kernel.libbpf import BpfObject
from bpfilter.kernel.syscall import map_update, map_update_batch, run_program

SOURCE = Path(__file__).with_name("driver.bpf.c")
_SLOT = 64
_ZERO = struct.pack("=I", 0)


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

    def __init__(self, frames: Sequence[bytes], *, ifindex: int = 0) -> None:
        """`ifindex`: where `flood` sends the frames. Raises KernelError without clang or rights."""
        self._directory = tempfile.TemporaryDirectory(prefix="bpfilter-bench-")
        self._object = BpfObject.loaded(
            _build(Path(self._directory.name)),
            lambda opened: opened.set_map("frames", max_entries=len(frames)),
        )
        self.frame = frames[0]
        keys = b"".join(struct.pack("=I", index) for index in range(len(frames)))
        values = b"".join(frame.ljust(_SLOT, b"\0") for frame in frames)
        map_update_batch(self._object.map_fd("frames"), keys, values, len(frames))
        cursor = struct.pack("=IIII", 0, len(frames), ifindex, 0)
        map_update(self._object.map_fd("cursors"), _ZERO, cursor)

    def measure(self, program: int, *, repeat: int, rounds: int) -> Timing:
        """ns per packet of a TC program; rounds with and without it take turns."""
        drive = self._object.program_fd("drive")
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

    @property
    def flood(self) -> int:
        """The XDP program that sends the frames."""
        return self._object.program_fd("flood")

    @property
    def drop(self) -> int:
        """An XDP program that drops everything."""
        return self._object.program_fd("drop")

    def close(self) -> None:
        self._object.close()
        self._directory.cleanup()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _build(directory: Path) -> Path:
    clang = shutil.which("clang")
    if clang is None:
        raise KernelError("clang is missing", hint="apt-get install clang, or run make setup")
    target = directory / "driver.bpf.o"
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True)
    include = f"-I/usr/include/{machine.stdout.strip()}-linux-gnu"
    command = [clang, "-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror", include]
    done = subprocess.run(
        [*command, "-c", str(SOURCE), "-o", str(target)], capture_output=True, text=True
    )
    if done.returncode:
        raise KernelError(f"{SOURCE} does not compile: {done.stderr.strip()}", hint="see the line")
    assert FRAME <= _SLOT
    return target
