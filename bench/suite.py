"""What a run measures, by how much time it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.compare import NothingToSend, Pace, Row, compare
from bench.compiled import measure
from bench.contenders import prepare
from bench.frames import Match
from bench.network import Network
from bench.paired import Pair
from bench.report import Compiled, Edit
from bench.stream import streams
from bench.swap import swaps
from bench.workloads import Kind, Workload, from_file, workload
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison of all contenders."""

    kind: Kind
    rules: int
    dropped: bool = True
    match: Match = Match.RANDOM
    family: Family = Family.IPV4


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases of packets, rulesets for the compiler, edits and streams."""

    cases: Sequence[Case]
    compiled: Sequence[tuple[Kind, int]]
    edits: int
    stream_rounds: int
    pace: Pace


_STYLES = (Kind.ACL, Kind.IPC, Kind.FW)
FULL = Suite(
    (
        *(Case(kind, count) for count in (10, 10_000) for kind in _STYLES),
        *(Case(Kind.ACL, count) for count in (1, 100, 1000)),
        *(Case(Kind.ACL, count, dropped=False) for count in (10, 1000, 10_000)),
        *(Case(Kind.ACL, 1000, match=match) for match in (Match.FIRST, Match.LAST, Match.ZIPF)),
        Case(Kind.ACL, 10_000, match=Match.ZIPF),
        Case(Kind.ACL, 10_000, family=Family.IPV6),
        Case(Kind.ACL, 10_000, dropped=False, family=Family.IPV6),
        Case(Kind.GRID, 1000),
        Case(Kind.BLOCKLIST, 1000),
        Case(Kind.BLOCKLIST, 100_000),
        Case(Kind.CHAINS, 1000),
        Case(Kind.DOCKER, 100, dropped=False),
        Case(Kind.ACL, 100_000),
    ),
    (
        *((kind, count) for count in (1000, 10_000, 100_000) for kind in _STYLES),
        (Kind.BLOCKLIST, 100_000),
    ),
    edits=10_000,
    stream_rounds=3,
    pace=Pace(),
)
QUICK = Suite(
    (
        *(Case(kind, 10_000) for kind in _STYLES),
        Case(Kind.ACL, 10),
        Case(Kind.ACL, 1000),
        Case(Kind.ACL, 10_000, dropped=False),
        Case(Kind.GRID, 1000),
    ),
    tuple((kind, count) for count in (1000, 10_000) for kind in _STYLES),
    edits=1000,
    stream_rounds=1,
    pace=Pace(seconds=0.03, rounds=5),
)


def packets(suite: Suite, seed: int, say: Say) -> Iterator[Row]:
    """All contenders on every case; a case without packets to send is left out, and said."""
    with Network() as network:
        for case in suite.cases:
            verdict = "drop" if case.dropped else "accept"
            say(f"packets: {case.kind} {case.family} {case.rules} {verdict} {case.match}")
            work = workload(case.kind, case.rules, seed, case.family)
            try:
                yield from compare(
                    network,
                    work,
                    dropped=case.dropped,
                    match=case.match,
                    seed=seed,
                    pace=suite.pace,
                )
            except NothingToSend as error:
                say(str(error))


def of_file(path: Path, seed: int, pace: Pace, say: Say) -> Iterator[Row]:
    """All contenders on a ruleset of the user's own, both verdicts."""
    ready = prepare(from_file(path))
    with Network() as network:
        for dropped in (True, False):
            say(f"packets: {path.name} {'drop' if dropped else 'accept'}")
            try:
                yield from compare(
                    network, ready.work, dropped=dropped, seed=seed, pace=pace, ready=ready
                )
            except NothingToSend as error:
                say(str(error))


def compiler(suite: Suite, seed: int, say: Say, *, proof: int, running: bool) -> Iterator[Compiled]:
    """Every ruleset through the compiler; up to `proof` rules with the proof of its plan."""
    for kind, count in suite.compiled:
        say(f"compiler: {kind} {count}")
        work: Workload = workload(kind, count, seed)
        yield measure(
            work,
            seed,
            packets=1024,
            repeat=10_000,
            rounds=15,
            proving=count <= proof,
            running=running,
        )


def edits(suite: Suite, say: Say) -> Iterator[Edit]:
    """One rule changed, on both backends."""
    for backend in Backend:
        say(f"edits: {suite.edits} rules, {backend}")
        yield swaps(backend, suite.edits)


def established(suite: Suite, say: Say) -> dict[str, list[Pair]]:
    """TCP streams without a filter, through iptables and in enforcement; empty without iperf3."""
    say("streams")
    return streams(1000, suite.stream_rounds, "nft")
