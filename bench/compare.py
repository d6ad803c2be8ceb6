"""Real packets through all contenders, in turns: nanoseconds per packet, sender included.

BPF_PROG_RUN with live frames makes packets of all headers in turn and redirects them into a veth
pair (`bpfilter.lab.driver`); sender and receiver share one core, so the time per packet is the cost
of both. In every round each contender takes one turn, every second round in
reverse, so that a slow moment of the machine and the order hit all of them alike.
"""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from bench.contenders import CHAIN, Entered, Prepared, contenders, prepare
from bench.frames import Match, frame, headers
from bench.network import FILTERING, SENDING, Network
from bench.workloads import Workload
from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.ir import Verdict
from bpfilter.compiler.walk import Packet
from bpfilter.demo.network import inside
from bpfilter.errors import BpfilterError
from bpfilter.lab.driver import Driver
from bpfilter.ruleset.fields import Family, Field

_TRIES = 40


class NothingToSend(BpfilterError):
    """The rules give too few packets the verdict that is measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one path costs for one ruleset.

    `name`: the workload; `verdict`: of all packets; `match`: which rules they hit. `mad`: median
    absolute deviation of the rounds. `ratio_to_xdp_drop`, `ratio_to_iptables`: against a bare
    XDP_DROP and iptables-legacy with the same rules, from the same rounds; `ratio_to_nft`: against
    iptables-nft; None where that path had no part.
    """

    name: str
    rules: int
    family: str
    verdict: str
    match: str
    path: str
    ns_per_packet: float
    mad: float
    ratio_to_xdp_drop: float | None = None
    ratio_to_iptables: float | None = None
    ratio_to_nft: float | None = None
    ratio_to_plain: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure: seconds of one contender's turn, and rounds."""

    seconds: float = 0.06
    rounds: int = 7
    packets: int = 1024


def compare(
    network: Network,
    work: Workload,
    *,
    dropped: bool = True,
    match: Match = Match.RANDOM,
    seed: int = 1,
    pace: Pace | None = None,
    ready: Prepared | None = None,
) -> list[Row]:
    """All contenders on one workload, with packets of one verdict.

    Raises NothingToSend if the rules hardly ever give it to packets of TCP or UDP.
    """
    pace = pace or Pace()
    ready = ready or prepare(work)
    packets = chosen(ready, dropped=dropped, match=match, seed=seed, count=pace.packets)
    with (
        one_core(),
        driver_of(network, packets, work.family) as driver,
        contenders(network, driver, ready, dropped=dropped) as paths,
    ):
        samples = _samples(network, driver, paths, pace)
    verdict = "drop" if dropped else "accept"
    return rows_of(samples, (work.name, work.rules, work.family.value, verdict, match.value))


def chosen(ready: Prepared, *, dropped: bool, match: Match, seed: int, count: int) -> list[Packet]:
    """Packets of TCP and UDP with the verdict, by what the compiled rules say of them."""
    chain = ready.plan.chains[CHAIN]
    wanted = Verdict.DROP if dropped else Verdict.ACCEPT
    misses = 0.1 if match is Match.RANDOM else 0.0
    rng = np.random.default_rng(seed)
    found: list[Packet] = []
    for _ in range(_TRIES):
        drawn = headers(chain.flat, rng, count, misses, match)
        functions = functions_of(chain.tables, drawn)
        for packet, function in zip(drawn, functions, strict=True):
            uniform = function.uniform
            static = uniform is not None and uniform.verdict is wanted
            if static and packet[Field.PROTOCOL] in (6, 17):
                found.append(packet)
        if len(found) >= count:
            return found[:count]
    if len(found) < count // 8:
        raise NothingToSend(
            f"{ready.work.name}: hardly a packet of TCP or UDP gets {wanted.name}",
            hint="measure the other verdict, or other rules",
        )
    return found


@contextmanager
def driver_of(network: Network, packets: Sequence[Packet], family: Family) -> Iterator[Driver]:
    """A driver whose frames, one for each packet, go to the filtering side."""
    with inside(network.filter), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((FILTERING, 0))
        mac: bytes = sock.getsockname()[4]
    frames = [frame(packet, mac, family) for packet in packets]
    with inside(network.sender):
        driver = Driver(frames, [socket.if_nametoindex(SENDING)])
    with driver:
        yield driver


def _samples(
    network: Network,
    driver: Driver,
    paths: Mapping[str, Entered],
    pace: Pace,
) -> dict[str, list[float]]:
    counts: dict[str, int] = {}
    samples: dict[str, list[float]] = {path: [] for path in paths}
    for number in range(pace.rounds):
        order = list(paths) if number % 2 == 0 else list(reversed(list(paths)))
        for path in order:
            with paths[path]():
                if path not in counts:
                    counts[path] = _fitting(network, driver, pace.seconds)
                samples[path].append(flood(network, driver, counts[path]))
    return samples


def rows_of(samples: dict[str, list[float]], head: tuple[str, int, str, str, str]) -> list[Row]:
    """Medians, deviations, and ratios: each the median of the ratios of the rounds."""

    def ratio(path: str, to: str) -> float | None:
        if to not in samples:
            return None
        pairs = zip(samples[path], samples[to], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    rows = []
    for path, times in samples.items():
        middle = statistics.median(times)
        mad = statistics.median(abs(one - middle) for one in times)
        backend = "nft" if path.endswith("nft") else "legacy"
        row = Row(
            *head,
            path,
            middle,
            mad,
            ratio(path, "XDP drop"),
            ratio(path, "iptables-legacy"),
            ratio(path, "iptables-nft"),
            ratio(path, f"plain {backend}"),
        )
        rows.append(row)
    return rows


def _fitting(network: Network, driver: Driver, seconds: float) -> int:
    """How many packets take about so long; the first ones warm caches."""
    count = 1024
    while True:
        taken = count * flood(network, driver, count) / 1e9
        if taken >= seconds / 4:
            return max(64, int(count * seconds / taken))
        count *= 4


def flood(network: Network, driver: Driver, count: int) -> float:
    """Send that many packets; ns per packet until all were received and judged."""
    with inside(network.sender):
        return float(driver.send(count))


@contextmanager
def one_core() -> Iterator[None]:
    """This thread stays on the core it is on, so that no round pays for a move."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
