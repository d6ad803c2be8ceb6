"""An established TCP stream through the filter in every stage: `python -m bench.stream`.

iperf3 sends through a veth pair whose far side filters, with GRO and segmentation offload as hosts
have them, its two ends each on a core of its own. Beside each path stands another pair without any
filter, and short streams through the two alternate. What counts is the ratio of each two, in rate
and in processor time per byte: the median of these, and the bounds within which the true one lies
with 19 of 20 chances, so that a noisy machine leaves a question open and does not answer it. The
path "no filter" is the control, compared with its like: while that does not come out even, nothing
is said of the others.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.generate import Style, rules, ruleset_text
from bench.network import FILTERING, SENDING, Network
from bench.paired import LEAST, Pair, Share, Stream, keeps, kept_cost, kept_rate
from bpfilter.demo.network import inside, ip
from bpfilter.errors import BpfilterError, LabError
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.stages import Request, Rollout

SERVER, CLIENT = "10.123.0.1", "10.123.0.2"
_PORT = 5201
_BYTES, _EACH, _TRIES = "256M", 12, 3
_HEAD = (
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    f"-p tcp -m tcp --dport {_PORT} -j ACCEPT",
)

Stage = Callable[[Rollout], None]
_STAGES: dict[str, Stage | None] = {
    "no filter": None,
    "iptables": lambda rollout: None,
    "shadow": lambda rollout: _to_shadow(rollout),
    "canary, half the flows": lambda rollout: _to_canary(rollout),
    "enforce": lambda rollout: _to_enforce(rollout),
}


def _to_shadow(rollout: Rollout) -> None:
    rollout.shadow()


def _to_canary(rollout: Rollout) -> None:
    rollout.shadow()
    rollout.canary(Scope(share=0.5))


def _to_enforce(rollout: Rollout) -> None:
    rollout.shadow()
    rollout.enforce()


def streams(
    count: int, rounds: int, backend: str, names: Sequence[str] = tuple(_STAGES)
) -> dict[str, list[Pair]]:
    """The pairs of each round, by path: without a filter, through iptables, and in stages.

    Raises LabError without iperf3.
    """
    if shutil.which("iperf3") is None:
        raise LabError("iperf3 is missing", hint="apt-get install iperf3")
    pairs: dict[str, list[Pair]] = {name: [] for name in names}
    text = ruleset_text([*_HEAD, *rules(Style.ACL, count, 1)])
    with Network() as network, _server(network), Network("b") as base, _server(base):
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                with _path(network, backend, text, _STAGES[name]):
                    pairs[name] += [_pair(network, base, name, turn) for turn in range(_EACH)]
    return pairs


def main(
    count: Annotated[int, typer.Option("--rules", help="Rules of the access list.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Times that each path is set up.")] = 5,
    backend: Annotated[str, typer.Option(help="legacy or nft.")] = "nft",
) -> None:
    """Measure a TCP stream without a filter, through iptables, and in every stage."""
    Console(width=120).print(_table(streams(count, rounds, backend), count, backend))


@contextmanager
def _server(network: Network) -> Iterator[None]:
    ip("-n", network.filter, "addr", "add", f"{SERVER}/24", "dev", FILTERING)
    ip("-n", network.sender, "addr", "add", f"{CLIENT}/24", "dev", SENDING)
    with inside(network.filter):
        server = subprocess.Popen(
            ["iperf3", "--server", "--bind", SERVER, "--port", str(_PORT)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def _path(network: Network, backend: str, text: str, stage: Stage | None) -> Iterator[None]:
    if stage is None:
        yield
        return
    network.restore(backend, text)
    request = Request((FILTERING,), lease_seconds=60.0)
    try:
        with tempfile.TemporaryDirectory(prefix="bpfilter-bench-") as directory:
            journal = Journal(Path(directory) / "state")
            with (
                inside(network.filter),
                Rollout(request, journal, lambda _line: None) as rollout,
            ):
                stage(rollout)
                yield
            journal.remove()
    finally:
        network.clear(backend)


def _pair(network: Network, base: Network, path: str, turn: int) -> Pair:
    """Every second time the one without a filter goes first."""
    if turn % 2:
        plain = _stream(base, "no filter")
        return Pair(_stream(network, path), plain)
    ours = _stream(network, path)
    return Pair(ours, _stream(base, "no filter"))


def _stream(network: Network, path: str) -> Stream:
    """One stream; LabError if it stalls, or iperf3 says several times that it failed."""
    cores = sorted(os.sched_getaffinity(0))
    command = ["ip", "netns", "exec", network.sender, "iperf3", "--client", SERVER]
    options = ["--port", str(_PORT), "--bytes", _BYTES, "--json",
               "--affinity", f"{cores[0]},{cores[-1]}"]  # fmt: skip
    for _ in range(_TRIES):
        try:
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            raise LabError(f"the stream stalled: {path}", hint="run it again") from None
        # With status 0 it may still have failed to fetch the other end's figures.
        end = json.loads(done.stdout or "{}").get("end", {})
        if usage := end.get("cpu_utilization_percent"):
            received = end["sum_received"]
            dearer = max(usage["host_total"], usage["remote_total"]) / 100 * received["seconds"]
            return Stream(received["bits_per_second"] / 1e9, dearer * 1e9 / received["bytes"])
        time.sleep(0.5)
    raise LabError(f"iperf3: {done.stdout}{done.stderr}", hint="is the port free?")


def _table(pairs: dict[str, list[Pair]], count: int, backend: str) -> Table:
    table = Table(title=f"A TCP stream, {count} rules, iptables-{backend}")
    for name in ("path", "Gbit/s", "rate kept", "ns per KiB", "kept by processor time",
                 f"≥ {LEAST:.0%}"):  # fmt: skip
        table.add_column(name, justify="left" if name == "path" else "right")
    for name, found in pairs.items():
        kept = kept_cost(found)
        table.add_row(
            name,
            _spread([pair.ours.rate for pair in found], 2),
            _shown(kept_rate(found)),
            _spread([1024 * pair.ours.cost for pair in found], 0),
            _shown(kept),
            _ANSWER[keeps(found, pairs["no filter"])],
        )
    return table


def _spread(values: Sequence[float], digits: int) -> str:
    """The median and the median absolute deviation."""
    middle = statistics.median(values)
    off = statistics.median(abs(value - middle) for value in values)
    return f"{middle:.{digits}f} ±{off:.{digits}f}"


_ANSWER = {True: "yes", False: "no", None: "cannot be told"}


def _shown(kept: Share | None) -> str:
    return "too few" if kept is None else f"{kept.median:.1%} ({kept.low:.1%} to {kept.high:.1%})"


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("bench.stream needs root")
    try:
        typer.run(main)
    except BpfilterError as error:
        Console(stderr=True).print(f"[bold red]bench[/]: {error}")
        raise SystemExit(error.exit_code) from None
