"""The chaos run: worlds, acts in random order, kills at every point, and what the book says."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bpfilter.rollout.journal import Stage
from tests.chaos.acts import Conductor, Say
from tests.chaos.book import Tally
from tests.chaos.local import refused_early
from tests.chaos.traffic import Traffic
from tests.chaos.world import World

BACKENDS = ("nft", "legacy")


@dataclass
class Result:
    """What one world's run came to. `points`: where its daemon was killed; `early`: datagrams of
    the firewall's own that were looked at while enforcing, and refused with no rule of iptables
    counting them."""

    world: str
    tally: Tally = field(default_factory=Tally)
    acts: dict[str, int] = field(default_factory=dict)
    points: list[int] = field(default_factory=list)
    decided: int = 0
    early: int = 0
    edits: int = 0
    conversations: int = 0
    trouble: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.tally.clean and not self.trouble

    def __str__(self) -> str:
        lines = (
            f"{self.world}: {self.tally}",
            f"  {self.decided} packets came to the dispatch with a code, {self.early} of the"
            f" firewall's own were seen to end before iptables; {self.edits} edits,"
            f" {self.conversations} TCP conversations, killed at {len(self.points)} points,"
            f" {self.tally.stray} strays",
            "  " + ", ".join(f"{count} x {name}" for name, count in self.acts.items()),
            *(f"  ! {line}" for line in (*self.trouble, *self.tally.evidence)),
        )
        return "\n".join(lines)


@contextmanager
def conducted(
    backend: str, *, router: bool, rate: int, seed: int, say: Say, filler: int = 0
) -> Iterator[tuple[Conductor, Result]]:
    """A world with traffic; the result is complete when the context ends."""
    with (
        tempfile.TemporaryDirectory(prefix="bpfilter-chaos-") as directory,
        World(backend, router=router, filler=filler) as world,
    ):
        result = Result(world.name, world.book.tally)
        with Traffic(world, rate, seed) as traffic:
            conductor = Conductor(world, traffic, random.Random(seed), Path(directory), say)
            try:
                yield conductor, result
            finally:
                conductor.clean()
        result.acts, result.points = conductor.acts, conductor.points
        result.decided, result.edits = conductor.decided, conductor.edits
        result.conversations, result.trouble = traffic.conversations, traffic.trouble
        result.trouble += conductor.failures


def run(
    backend: str,
    *,
    router: bool,
    seconds: float,
    seed: int,
    rate: int,
    say: Say,
    points: Sequence[int] | None = None,
    only: Sequence[str] = (),
) -> Result:
    """Acts in random order for so long, then a death at each point (None: at all there are)."""
    with conducted(backend, router=router, rate=rate, seed=seed, say=say) as (conductor, result):
        end = time.monotonic() + seconds
        order: list[str] = []
        while time.monotonic() < end or order:
            acts = conductor.choices()
            if not order:
                order = [name for name in acts if not only or name in only]
                conductor.rng.shuffle(order)
            conductor.act("coming to enforce", conductor.enforcing)
            time.sleep(0.5)
            result.early += refused_early(conductor.world, conductor.traffic.local)
            name = order.pop()
            conductor.act(name, acts[name])
            if time.monotonic() > end + seconds:
                break
        for point in points if points is not None else range(1, 1000):
            conductor.world.book.act = f"SIGKILL at point {point}"
            say(conductor.world.book.act)
            if not conductor.killed_at(point):
                break
        conductor.act("coming to enforce", conductor.enforcing)
        time.sleep(1)
        result.early += refused_early(conductor.world, conductor.traffic.local)
    return result


def plain(backend: str, *, router: bool, seconds: float, seed: int, rate: int) -> Result:
    """The control: iptables alone, with edits, flushes and restores."""
    with conducted(backend, router=router, rate=rate, seed=seed, say=lambda _: None) as (
        conductor,
        result,
    ):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            conductor.act("rules are edited", conductor.some_edits)
            conductor.act("iptables -F, then restored", conductor.flush)
    return result


def wrong(backend: str, verdict: str, *, router: bool, seconds: float, rate: int) -> Result:
    """The other control: a dispatch that gives every decided packet one verdict; `output`: a
    program at LOCAL_OUT that drops where it should not."""
    with conducted(backend, router=router, rate=rate, seed=1, say=lambda _: None) as (
        conductor,
        result,
    ):
        conductor.start(Stage.ENFORCE, how=f"wrong:{verdict}")
        conductor.reaches(Stage.ENFORCE)
        time.sleep(seconds)
    return result
