"""Cycles of plan, shadow, enforce, rollback and teardown: nothing is left, and nothing grows."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bpfilter.kernel.syscall import KernelCallFailed, bpf
from bpfilter.rollout import pins
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.rollout.teardown import remains, teardown
from tests.chaos.namespaces import entered
from tests.chaos.run import conducted
from tests.chaos.world import World

_BY_ID = {"prog_id": 13, "map_id": 14, "link_id": 30}
_HELD = re.compile(r"^(prog_id|map_id|link_id):\s*(\d+)$", re.MULTILINE)
_GONE_SECONDS = 10.0
_WARM = 10
"""Cycles before memory is compared: allocators and caches fill at first."""
GROWTH_KIB = 40
"""Per cycle; a leaked image or map view is far larger."""


class _ById(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint32), ("next", ctypes.c_uint32), ("flags", ctypes.c_uint32))


@dataclass
class Leaks:
    """What was left after each cycle, and the process's memory in KiB."""

    backend: str
    cycles: int = 0
    objects: int = 0
    left: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """KiB per cycle: the least-squares slope over the second half of the warm cycles."""
        values = self.resident[_WARM:]
        values = values[len(values) // 2 :]
        n = len(values)
        if n < 2:
            return 0.0
        middle, mean = (n - 1) / 2, sum(values) / n
        above = sum((i - middle) * (value - mean) for i, value in enumerate(values))
        return above / sum((i - middle) ** 2 for i in range(n))

    @property
    def good(self) -> bool:
        return not self.left and self.growth < GROWTH_KIB

    def __str__(self) -> str:
        first, last = self.resident[min(_WARM, self.cycles - 1)], self.resident[-1]
        return (
            f"iptables-{self.backend}: {self.cycles} cycles,"
            f" {self.objects} programs, maps and links made and gone;"
            f" descriptors {self.descriptors[0]} to {self.descriptors[-1]}; resident memory"
            f" {first} KiB to {last} KiB, {self.growth:.1f} KiB per cycle at the end"
            + "".join(f"\n  ! {line}" for line in self.left[:20])
        )


def leaks(backend: str, cycles: int) -> Leaks:
    """So many cycles in this process."""
    found = Leaks(backend)
    with World(backend, router=False) as world, entered(world.fw):
        before, others = _standing(world), _held()
        for _ in range(cycles):
            with _journal() as journal:
                held = _cycle(journal) - others
                teardown(journal.path.parent)
            found.objects += len(held)
            found.left += [f"{kind} {number}" for kind, number in _still(held)]
            gc.collect()
            found.left += [f"{line} appeared" for line in _standing(world) - before]
            found.left += remains()
            found.resident.append(_resident())
            found.descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
            found.cycles += 1
        if found.descriptors[-1] > found.descriptors[0]:
            found.left.append(f"{found.descriptors[-1] - found.descriptors[0]} file descriptors")
    return found


def process_leaks(backend: str, cycles: int) -> Leaks:
    """So many daemons one after the other, under traffic; every other one is killed."""
    found = Leaks(backend)
    quiet = {"router": False, "seed": 1, "rate": 100, "say": lambda _line: None}
    with conducted(backend, **quiet) as (conductor, _):
        before = _standing(conductor.world)
        for number in range(cycles):
            conductor.start(Stage.ENFORCE)
            if not conductor.reaches(Stage.ENFORCE):
                found.left.append(f"daemon {number} did not come to enforce")
            process = conductor.process
            held = _held(process.pid)
            found.resident.append(_resident(process.pid))
            found.descriptors.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
            conductor.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
            if number % 2:
                conductor.clean()
            found.objects += len(held)
            found.left += [f"{kind} {number}" for kind, number in _still(held)]
            found.left += [f"{line} appeared" for line in _standing(conductor.world) - before]
            found.cycles += 1
    return found


@contextmanager
def _journal() -> Iterator[Journal]:
    with (
        tempfile.TemporaryDirectory(prefix="bpfilter-leak-") as directory,
        Journal(Path(directory) / "state") as journal,
    ):
        yield journal


def _cycle(journal: Journal) -> set[tuple[str, int]]:
    """One way up and down; the kernel's objects that were held on the way."""
    with Rollout(Request(("v1",), lease_seconds=30.0), journal, lambda _: None) as rollout:
        rollout.shadow()
        held = _held()
        rollout.enforce()
        held |= _held()
        rollout.swap()
        return held | _held()


def _held(process: int | str = "self") -> set[tuple[str, int]]:
    """The BPF objects of which a process has descriptors."""
    found = set()
    for path in Path(f"/proc/{process}/fdinfo").iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        found |= {(kind, int(number)) for kind, number in _HELD.findall(text)}
    return found


def _still(held: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those the kernel has even after a while: they go a moment after their last user."""
    end = time.monotonic() + _GONE_SECONDS
    while held and time.monotonic() < end:
        held = {each for each in held if _exists(*each)}
        time.sleep(0.02)
    return held


def _exists(kind: str, number: int) -> bool:
    try:
        os.close(bpf(_BY_ID[kind], _ById(number), f"open {kind}"))
    except KernelCallFailed as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _standing(world: World) -> set[str]:
    """Chains, rules, pins of this namespace, and the links of its interface."""
    with entered(world.fw):
        place = pins.directory()
    rules = [line for family in (4, 6) for line in world.iptables(family, "-S").splitlines()]
    pinned = [str(path) for path in place.iterdir()] if place.is_dir() else []
    return {*rules, *pinned}


def _resident(process: int | str = "self") -> int:
    """A process's resident memory that is not of files, in KiB."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else 0
