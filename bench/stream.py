"""An established TCP stream through the filter in every stage: `python -m bench.stream`.

iperf3 sends for a while through a veth pair whose far side filters, with GRO and segmentation
offload as hosts have them. The paths take turns, round after round, so that a slow moment of the
machine hits all of them; what counts is each path's median against the one without any filter.
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
from bpfilter.demo.network import inside, ip
from bpfilter.errors import BpfilterError, LabError
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.stages import Request, Rollout

SERVER, CLIENT = "10.123.0.1", "10.123.0.2"
_PORT = 5201
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
    count: int, seconds: float, rounds: int, backend: str, names: Sequence[str] = tuple(_STAGES)
) -> dict[str, list[float]]:
    """Gbit/s of each round, by path: without a filter, through iptables, and in stages.

    Raises LabError without iperf3.
    """
    if shutil.which("iperf3") is None:
        raise LabError("iperf3 is missing", hint="apt-get install iperf3")
    rates: dict[str, list[float]] = {name: [] for name in names}
    text = ruleset_text([*_HEAD, *rules(Style.ACL, count, 1)])
    with Network() as network, _server(network):
        for _ in range(rounds):
            for name in names:
                with _path(network, backend, text, _STAGES[name]):
                    rates[name].append(_stream(network, seconds))
    return rates


def main(
    count: Annotated[int, typer.Option("--rules", help="Rules of the access list.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Of each stream.")] = 2.0,
    rounds: Annotated[int, typer.Option(help="Streams per path.")] = 5,
    backend: Annotated[str, typer.Option(help="legacy or nft.")] = "nft",
) -> None:
    """Measure a TCP stream without a filter, through iptables, and in every stage."""
    rates = streams(count, seconds, rounds, backend)
    Console().print(_table(rates, count, backend))


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


def _stream(network: Network, seconds: float) -> float:
    """Gigabits per second that arrive."""
    command = ["ip", "netns", "exec", network.sender, "iperf3", "--client", SERVER]
    options = ["--port", str(_PORT), "--time", str(seconds), "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise LabError(f"iperf3: {done.stdout}{done.stderr}", hint="is the port free?")
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _table(rates: dict[str, list[float]], count: int, backend: str) -> Table:
    table = Table(title=f"A TCP stream, {count} rules, iptables-{backend}")
    for name in ("path", "Gbit/s, median", "deviation", "against no filter"):
        table.add_column(name, justify="left" if name == "path" else "right")
    base = statistics.median(rates["no filter"])
    for name, found in rates.items():
        middle = statistics.median(found)
        spread = statistics.median(abs(rate - middle) for rate in found)
        table.add_row(name, f"{middle:.2f}", f"±{spread:.2f}", f"{middle / base:.1%}")
    return table


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("bench.stream needs root")
    try:
        typer.run(main)
    except BpfilterError as error:
        Console(stderr=True).print(f"[bold red]bench[/]: {error}")
        raise SystemExit(error.exit_code) from None
