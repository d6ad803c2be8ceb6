"""`bpfilter deploy`: start the daemon for this network namespace, confirm its stage, or look first.

Exit codes: 0 done, 1 failed, 2 `--dry-run` and there is a change to make, 64 usage.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bpfilter.errors import RolloutError, UsageError
from bpfilter.rollout import host
from bpfilter.rollout.journal import Journal, Stage, running, state_directory
from bpfilter.rollout.mark import choose, ruleset_uses
from bpfilter.rollout.notices import notices
from bpfilter.rollout.prepare import Prepared, prepare
from bpfilter.rollout.service import CONFIRMED
from bpfilter.ruleset.model import Backend

_START_SECONDS = 120.0


def deploy_command(
    interface: Annotated[
        list[str] | None, typer.Option("--interface", "-i", help="Interface; repeatable.")
    ] = None,
    stage: Annotated[Stage, typer.Option(help="How far to go.")] = Stage.SHADOW,
    backend: Annotated[Backend | None, typer.Option(help="Default: the one with rules.")] = None,
    confirm_within: Annotated[
        float | None, typer.Option(min=1.0, help="Roll back unless confirmed in so many seconds.")
    ] = None,
    accept_state_reset: Annotated[
        bool, typer.Option(help="Legacy: our edits may reset limits that decide verdicts.")
    ] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Confirm the running stage.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the journal, default by namespace.")
    ] = None,
) -> None:
    """Shadow or enforce the live iptables rules of this network namespace."""
    console = Console(highlight=False)
    directory = state or state_directory()
    if confirm:
        _confirm(directory, console)
        return
    if not interface:
        raise UsageError("--interface is missing", hint="name the interface to attach to")
    if dry_run:
        prepared = prepare(backend)
        _show(console, prepared, interface, stage)
        raise typer.Exit(0 if _running_stage(directory) is stage else 2)
    words = [word for name in interface for word in ("--interface", name)]
    if confirm_within is not None:
        words += ["--confirm-within", str(confirm_within)]
    if accept_state_reset:
        words.append("--accept-state-reset")
    if backend is not None:
        words += ["--backend", backend]
    _start(directory, [*words, "--stage", stage], stage, console)
    if confirm_within is not None:
        console.print(f"confirm within {confirm_within:.0f} s: bpfilter deploy --confirm")


def _running_stage(directory: Path) -> Stage:
    found = running(directory)
    return Stage.OFF if found is None else found[1]


def _confirm(directory: Path, console: Console) -> None:
    if _running_stage(directory) is not Stage.ENFORCE:
        raise RolloutError(
            "nothing waits for a confirmation here",
            hint="the stage was rolled back, or never began",
        )
    with Journal(directory) as journal:
        journal.set(CONFIRMED, str(time.time()))
    console.print("confirmed: the stage stays")


def _start(directory: Path, words: list[str], stage: Stage, console: Console) -> None:
    if (found := running(directory)) is not None:
        raise RolloutError(
            f"bpfilterd runs here already, in stage {found[1]}", hint="`bpfilter teardown` ends it"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = directory.with_suffix(".log")
    command = [sys.executable, "-m", "bpfilter.cli.daemon", *words, "--state", str(directory)]
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    end = time.monotonic() + _START_SECONDS
    with console.status(f"waiting for stage {stage}"):
        while _running_stage(directory) is not stage:
            if daemon.poll() is not None or time.monotonic() > end:
                raise RolloutError(
                    f"bpfilterd did not reach stage {stage}:\n{log.read_text().strip()}",
                    hint="nothing was changed; iptables filters as before",
                )
            time.sleep(0.1)
    console.print(f"bpfilterd runs as process {daemon.pid}, stage {stage}; log: {log}")


def _show(console: Console, prepared: Prepared, interfaces: list[str], stage: Stage) -> None:
    table = Table("family", "chain", "entries", "residual functions", "proof", box=None)
    for plan, chain in prepared.chains():
        table.add_row(
            plan.family,
            f"{chain.table}/{chain.chain}",
            str(len(chain.flat.entries)),
            str(len(chain.functions)),
            "holds",
        )
    console.print(f"{stage} on {', '.join(interfaces)}, iptables-{prepared.backend}")
    console.print(table)
    obstacles = [o for name in interfaces for o in host.link_obstacles(name)]
    if stage is Stage.ENFORCE:
        obstacles += host.host_obstacles()
        mark = choose((*ruleset_uses(prepared.rulesets.values()), *host.mark_uses()))
        console.print(f"mark field {mark.mask:#010x}, {len(prepared.image.codes)} codes")
        for sentence in notices(prepared.rulesets.values(), prepared.backend):
            console.print(f"[cyan]notice[/] {sentence}")
    for obstacle in obstacles:
        console.print(f"[red]obstacle[/] {obstacle.what}\n  hint: {obstacle.hint}")
