"""What sending costs through OUTPUT: `python -m bench.output`.

One process sends small datagrams by `sendto`, to destinations that rules drawn at random name; each
way to filter takes a turn in every round, in alternating order. A figure is the processor time of a
whole send, system call and Python's part in it included, which the row without a filter shows: what
a filter costs is the difference. The far side throws the packets away unseen, as another station's.
On a machine that others share the least round says what the code costs, the median what it cost.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.compare import one_core
from bench.contenders import BACKENDS, Entered
from bench.generate import ruleset_text
from bench.network import FILTERING, Network
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.compiler.plan import Image
from bpfilter.demo.network import inside, ip
from bpfilter.errors import BpfilterError, LabError
from bpfilter.kernel.config import Mode
from bpfilter.kernel.options import SHARED, Options, Template
from bpfilter.kernel.output import OutputLinks
from bpfilter.kernel.program import Classifier
from bpfilter.kernel.shadow import Shadow
from bpfilter.ruleset.read import read_text

_ADDRESS, _GATEWAY, _NOBODY = "10.123.0.1", "10.123.0.2", "02:00:00:00:00:01"
_LEASE = 55 * 10**9
_PACKETS = 1024

Destination = tuple[str, int]
Samples = dict[str, list[float]]


def egress(count: int, seed: int) -> dict[Destination, bool]:
    """Destinations of a list of rules, two accepted for each that is dropped."""
    rng = random.Random(seed)
    found: dict[Destination, bool] = {}
    while len(found) < count:
        to = f"198.{rng.randrange(18, 20)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
        found.setdefault((to, rng.randrange(1, 65536)), rng.random() < 2 / 3)
    return found


def text_of(rules: Mapping[Destination, bool]) -> str:
    """The list as iptables-save writes it, in OUTPUT; what it does not name is accepted."""
    lines = [
        f"-d {to}/32 -p udp -m udp --dport {port} -j {'ACCEPT' if accepted else 'DROP'}"
        for (to, port), accepted in rules.items()
    ]
    return ruleset_text(lines, "OUTPUT", "ACCEPT")


def costs(count: int, rounds: int, seconds: float, *, dropped: bool, seed: int = 1) -> Samples:
    """Path → ns of a send in each round, for packets of one verdict.

    Raises LabError if a send does not end as the rules say.
    """
    rules = egress(count, seed)
    wanted = [to for to, accepted in rules.items() if accepted != dropped]
    sends = random.Random(seed).choices(wanted, k=_PACKETS)
    with Network() as network, one_core(), ExitStack() as stack:
        _reach(network)
        paths = _paths(network, text_of(rules), stack, dropped=dropped)
        with inside(network.filter):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        samples: Samples = {path: [] for path in paths}
        counts: dict[str, int] = {}
        for number in range(rounds):
            for path in sorted(paths, key=list(paths).index, reverse=number % 2 == 1):
                with paths[path]():
                    if path not in counts:
                        counts[path] = _fitting(sender, sends, seconds, dropped=dropped)
                    samples[path].append(_sent(sender, sends, counts[path], dropped=dropped))
    return samples


def _reach(network: Network) -> None:
    """Every destination lies behind a station that is not there."""
    ip("-n", network.filter, "addr", "add", f"{_ADDRESS}/24", "dev", FILTERING)
    ip("-n", network.filter, "route", "add", "default", "via", _GATEWAY)
    ip("-n", network.filter, "neigh", "replace", _GATEWAY, "lladdr", _NOBODY,
       "dev", FILTERING, "nud", "permanent")  # fmt: skip


def _paths(network: Network, text: str, stack: ExitStack, *, dropped: bool) -> dict[str, Entered]:
    """Path → how to enter it. Where all is to be dropped there is none without a filter."""
    least = "-A OUTPUT -p udp -j DROP\n" if dropped else ""
    small = f"*filter\n:OUTPUT ACCEPT [0:0]\n{least}COMMIT\n"
    found: dict[str, Entered] = {} if dropped else {"no filter": nullcontext}
    image = assemble([compile_ruleset(read_text(text, source="bench"), [("filter", "OUTPUT")])])
    for backend in BACKENDS:
        name = "one rule" if dropped else "empty table"
        found[f"{name}, {backend}"] = _ruled(network, backend, small)
        found[f"iptables, {backend}"] = _ruled(network, backend, text)
        for share in (1.0, 0.05):
            found[f"shadow {share:.0%}, {backend}"] = stack.enter_context(
                _program(network, backend, text, image, share)
            )
        found[f"enforce, {backend}"] = stack.enter_context(
            _program(network, backend, text, image, None)
        )
    return found


def _ruled(network: Network, backend: str, text: str) -> Entered:
    @contextmanager
    def entered() -> Iterator[None]:
        network.restore(backend, text)
        try:
            yield
        finally:
            network.clear(backend)

    return entered


@contextmanager
def _program(
    network: Network, backend: str, text: str, image: Image, share: float | None
) -> Iterator[Entered]:
    """The rules with the program before them: comparing this share, or (None) deciding.

    As on a host it takes lease and generation from a program for the interfaces, which here is
    attached nowhere.
    """
    with ExitStack() as stack, inside(network.filter):
        options = Options(
            mode=Mode.LIVE,
            interfaces={socket.if_nametoindex(FILTERING): FILTERING},
            marking=DEFAULT_MARK if share is None else None,
            leased=True,
            generation=True,
            shadow_share=share or 0.0,
        )
        main = stack.enter_context(Classifier.load(image, options))
        shared = {name: main.map_fd(name) for name in SHARED}
        beside = replace(options, template=Template.OUTPUT, shared=shared)
        classifier = stack.enter_context(Classifier.load(image, beside))
        held = stack.pop_all()

    @contextmanager
    def entered() -> Iterator[None]:
        with _ruled(network, backend, text)(), inside(network.filter):
            main.set_generation(main.observe_generation())
            main.set_lease(time.monotonic_ns() + _LEASE)
            shadow: AbstractContextManager[object] = (
                nullcontext() if share is None else Shadow.attach(classifier)
            )
            with shadow, closing(OutputLinks(classifier)):
                yield

    with held:
        yield entered
        judged, left = sum(classifier.outcomes().values()), sum(classifier.punts().values())
        if left > 0.02 * (judged + left):
            raise LabError(
                f"{left} of {judged + left} packets were left to iptables",
                hint="leave the machine's rules alone while this runs; else it is a fault",
            )


def _sent(
    sender: socket.socket, sends: Sequence[Destination], count: int, *, dropped: bool
) -> float:
    """Nanoseconds of processor time of a send, the mean of so many."""
    refused, sendto = 0, sender.sendto
    rounds, data = -(-count // len(sends)), b"x" * 18
    began = time.thread_time_ns()
    for _ in range(rounds):
        for to in sends:
            try:
                sendto(data, to)
            except PermissionError:
                refused += 1
    taken = time.thread_time_ns() - began
    if refused != (rounds * len(sends) if dropped else 0):
        raise LabError(
            f"{refused} of {rounds * len(sends)} sends were refused",
            hint="all should have been" if dropped else "none should have been",
        )
    return taken / (rounds * len(sends))


def _fitting(
    sender: socket.socket, sends: Sequence[Destination], seconds: float, *, dropped: bool
) -> int:
    """How many sends take about so long; these warm the caches."""
    return max(len(sends), int(seconds * 1e9 / _sent(sender, sends, len(sends), dropped=dropped)))


def main(
    count: Annotated[int, typer.Option("--rules", help="Rules in OUTPUT.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Turns of each path.")] = 9,
    seconds: Annotated[float, typer.Option(help="Of each turn.")] = 0.1,
) -> None:
    """Measure what a send costs without a filter, through iptables, and in the stages."""
    console = Console(width=110)
    for dropped in (False, True):
        console.print(table(costs(count, rounds, seconds, dropped=dropped), count, dropped=dropped))


def table(samples: Samples, count: int, *, dropped: bool) -> Table:
    """Medians, and the medians of each round's ratio to the path that filters least, the least."""
    verdict = "refused" if dropped else "sent"
    found = Table(title=f"Sending a datagram through OUTPUT: all are {verdict}, {count} rules")
    for name in ("path", "ns", "deviation", "times the first", "least ns", "more than the first"):
        found.add_column(name, justify="left" if name == "path" else "right")
    base = next(iter(samples.values()))
    for path, times in samples.items():
        middle = statistics.median(times)
        pairs = zip(times, base, strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        spread = statistics.median(abs(one - middle) for one in times)
        found.add_row(path, f"{middle:.0f}", f"±{spread:.0f}", f"{ratio:.2f}",
                      f"{min(times):.0f}", f"{min(times) - min(base):+.0f}")  # fmt: skip
    return found


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("bench.output needs root")
    try:
        typer.run(main)
    except BpfilterError as error:
        Console(stderr=True).print(f"[bold red]bench[/]: {error}")
        raise SystemExit(error.exit_code) from None
