"""Starting the daemon of a network namespace and waiting for its stages, with words for people."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bpfilter.errors import RolloutError
from bpfilter.rollout import host
from bpfilter.rollout.asking import log_of, start_daemon
from bpfilter.rollout.interfaces import resolve, survey
from bpfilter.rollout.journal import Journal, Stage, is_service, running
from bpfilter.rollout.management import Connection, judging, losses
from bpfilter.rollout.mark import choose, ruleset_uses
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.status import STATUS

_START_SECONDS = 120.0


def start(directory: Path, words: Sequence[str], stage: Stage, console: Console) -> None:
    """Start a daemon and wait for its stage; RolloutError with its log if it ends before."""
    daemon = start_daemon(directory, words)
    wait_for(directory, stage, console, daemon)
    console.print(f"bpfilterd runs as process {daemon.pid}; log: {log_of(directory)}")


def wait_for(
    directory: Path, stage: Stage, console: Console, daemon: subprocess.Popen[bytes] | None
) -> None:
    """Wait until the stage is reached; while gates are closed no longer than they are looked at.

    RolloutError if the daemon ends.
    """
    began = time.time()
    end = time.monotonic() + _START_SECONDS
    with console.status(f"waiting for stage {stage}"):
        while True:
            found = running(directory)
            if found is not None and not found[1].before(stage):
                console.print(f"stage {found[1]}")
                return
            if daemon is None and (problem := _problem(directory, began)) is not None:
                raise RolloutError(
                    f"stage {stage} was not reached: {problem}",
                    hint="nothing was changed; iptables filters as before",
                )
            ended = daemon.poll() is not None if daemon is not None else found is None
            if ended:
                log = log_of(directory)
                said = log.read_text().strip() if log.exists() else ""
                raise RolloutError(
                    f"bpfilterd did not reach stage {stage}:\n{said}",
                    hint="nothing was changed; iptables filters as before",
                )
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    console.print(f"still in stage {Stage.OFF if found is None else found[1]}; it waits for:")
    for gate in _closed_gates(directory):
        console.print(f"  {gate}")
    console.print("`bpfilter status` shows how far it is")


def _problem(directory: Path, since: float) -> str | None:
    """Why a service gave up what it was asked for since then."""
    if not is_service(directory):
        return None
    with Journal(directory, create=False) as journal:
        status = journal.document(STATUS) or {}
    return status.get("problem") if status.get("at", 0.0) > since else None


def _closed_gates(directory: Path) -> Sequence[str]:
    with Journal(directory, create=False) as journal:
        status = journal.document(STATUS) or {}
    return [gate["sentence"] for gate in status.get("gates", ()) if not gate["passed"]]


def show(
    console: Console,
    prepared: Prepared,
    interfaces: Sequence[str],
    stage: Stage,
    operator: Sequence[Connection],
) -> None:
    """What deploying would mean; changes nothing."""
    links = tuple(resolve(interfaces))
    table = Table("family", "chain", "entries", "residual functions", "proof", box=None)
    for plan, chain in prepared.chains():
        table.add_row(
            plan.family,
            f"{chain.table}/{chain.chain}",
            str(len(chain.flat.entries)),
            str(len(chain.functions)),
            "holds",
        )
    console.print(f"{stage} on {', '.join(links)}, iptables-{prepared.backend}")
    console.print(table)
    around = Table("interface", "kind", "what programs do there, and why", box=None)
    for each in survey():
        around.add_row(each.name, each.kind, each.why)
    console.print(around)
    obstacles: tuple[host.Obstacle, ...] = ()
    if stage.decides:
        obstacles = host.host_obstacles()
        mark = choose((*ruleset_uses(prepared.rulesets.values()), *host.mark_uses()))
        console.print(f"mark field {mark.mask:#010x}, {len(prepared.image.codes)} codes")
        for sentence in prepared.notices():
            console.print(f"[cyan]notice[/] {sentence}")
        for loss in losses(judging(prepared), operator, links):
            console.print(f"[red]lockout[/] {loss}")
    for obstacle in obstacles:
        console.print(f"[red]obstacle[/] {obstacle.what}\n  hint: {obstacle.hint}")
