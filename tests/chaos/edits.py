"""Foreign edits while enforcing: the next packet gets the new verdict, and soon we decide again.

After each edit a packet that it concerns is sent at once, and one behind it that is always
accepted: when that one has arrived, the first one was judged; the same again while the program goes
round the edited rule, and under the new plan. In force again is what moves the counter of our own
jump. The daemon's part (look at the generation, plan beside that, swap) is done by a process of its
own, in the rhythm of the daemon's polling.
"""

from __future__ import annotations

import multiprocessing
import random
import select
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.planner import Planner
from bpfilter.rollout.service import POLL_SECONDS
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.rollout.watch import Watcher
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.chaos.book import SECOND, Kind, Tally
from tests.chaos.namespaces import entered
from tests.chaos.rules import CHANGING, name_of
from tests.chaos.traffic import Traffic
from tests.chaos.world import World

_FORK = multiprocessing.get_context("fork")
_FENCE = (1010, "udp accepted")


@dataclass
class Edited:
    """What so many edits came to. Times in seconds from the return of the editing command.

    `judged`: until a packet sent after it was seen to have had the new verdict; `late`: packets
    sent after it that still had the old one; `round`: until the program decided again all but what
    the edited rule can match; `back`: until the new plan decided.
    """

    world: str
    rules: int
    edits: int = 0
    late: int = 0
    judged: list[float] = field(default_factory=list)
    round: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def good(self) -> bool:
        return self.tally.clean and not self.late

    def __str__(self) -> str:
        return (
            f"{self.world}, {self.rules} rules, {self.edits} edits: {self.tally}\n"
            f"  {self.late} packets sent after an edit's return had the old verdict; verdict seen"
            f" after {spread(self.judged)}; the program decides again after {spread(self.round)};"
            f" new plan in force after {spread(self.back)}"
        )


def spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "(too few)"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    named = (("median", cuts[49]), ("99 %", cuts[98]), ("max", max(seconds)))
    return ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in named)


@contextmanager
def _enforcing(world: World) -> Iterator[Connection]:
    """A process that decides; it sends one word when it goes round an edit, one when it is past it.

    Of its own, as the daemon is: the senders and receivers here would keep its threads waiting.
    """
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=_decide, args=(world, here, there), daemon=True)
    process.start()
    there.close()
    try:
        _hear(here, "enforcing")
        yield here
    finally:
        here.close()
        process.join(30)


def _decide(world: World, other: Connection, pipe: Connection) -> None:
    other.close()
    request = Request(world.interfaces, Backend(world.backend), lease_seconds=30.0)
    with tempfile.TemporaryDirectory(prefix="bpfilter-edits-") as directory:
        journal = Journal(Path(directory) / "state")
        with (
            entered(world.fw),
            Watcher() as watcher,
            closing(Planner()) as planner,
            Rollout(request, journal, lambda _: None) as rollout,
        ):
            rollout.watched = rollout.follows = True
            rollout.shadow()
            rollout.enforce()
            pipe.send("enforcing")
            with suppress(EOFError):
                while True:
                    _follow(rollout, watcher, planner, pipe)
        journal.remove()


def _follow(rollout: Rollout, watcher: Watcher, planner: Planner, pipe: Connection) -> None:
    """One edit, in the rhythm of the daemon's polling."""
    while not rollout.edited():
        if pipe in select.select([pipe, *watcher.files], [], [], POLL_SECONDS)[0]:
            raise EOFError
        watcher.drain()
    trouble = rollout.tick()
    assert trouble is None and rollout.behind is not None, trouble
    planner.start(rollout.preparation())
    pipe.send("around")
    while (plan := planner.take()) is None:
        select.select([*watcher.files, planner.file], [], [], POLL_SECONDS)
        watcher.drain()
    rollout.swap(plan)
    assert rollout.stage is Stage.ENFORCE and rollout.behind is None
    pipe.send("planned")


def _hear(pipe: Connection, word: str) -> None:
    assert pipe.poll(60), f"the deciding process never said {word!r}"
    assert pipe.recv() == word


def edits(backend: str, count: int, *, router: bool, filler: int, seed: int, rate: int) -> Edited:
    """So many random edits, each when the plan after the one before is in force."""
    rng = random.Random(seed)
    with World(backend, router=router, filler=filler) as world:
        result = Edited(world.name, filler, tally=world.book.tally)
        with _enforcing(world) as deciding, Traffic(world, rate, seed) as traffic:
            world.book.act = "edits while enforcing"
            for _ in range(count):
                _one(world, traffic, deciding, rng, result)
    return result


def _one(
    world: World, traffic: Traffic, deciding: Connection, rng: random.Random, result: Edited
) -> None:
    time.sleep(rng.random() * POLL_SECONDS)
    family, _ = world.edit(rng)
    returned = time.monotonic_ns()
    result.edits += 1
    chain, port = rng.choice(world.rules[family].chains), rng.choice(CHANGING)
    probed = world, traffic, Kind(chain, family, name_of(port)), port, result
    result.judged.append((_judged(*probed) - returned) / SECOND)
    _hear(deciding, "around")
    result.round.append((_decided(world, traffic, family) - returned) / SECOND)
    _judged(*probed)
    _hear(deciding, "planned")
    result.back.append((_decided(world, traffic, family) - returned) / SECOND)
    _judged(*probed)


def _judged(world: World, traffic: Traffic, kind: Kind, port: int, result: Edited) -> int:
    """When a packet of this kind was seen to have the verdict of the rules as they are now."""
    wanted = world.rules[kind.family].verdicts()[kind]
    while True:
        probe = traffic.probe(kind.chain, kind.family, port, kind.name)
        fence = _arrived(world, traffic.probe(kind.chain, kind.family, *_FENCE))
        if (world.book.arrival(probe) > 0) == wanted:
            return fence
        result.late += 1


def _decided(world: World, traffic: Traffic, family: Family) -> int:
    """When a packet was seen to be decided by the program."""
    before = world.decided()
    _arrived(world, traffic.probe("INPUT", family, *_FENCE))
    now = time.monotonic_ns()
    assert world.decided() > before, "the program does not decide"
    return now


def _arrived(world: World, number: int) -> int:
    end = time.monotonic() + 5
    while not (arrival := world.book.arrival(number)):
        assert time.monotonic() < end, "a packet that is always accepted did not arrive"
        time.sleep(0.0005)
    return arrival
