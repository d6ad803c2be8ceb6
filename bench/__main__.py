"""`python -m bench`: measures everything side by side, prints tables, keeps the run."""

from __future__ import annotations

import json
import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.goals import Results, goals
from bench.history import (
    BASELINE,
    HISTORY,
    RESULTS,
    document,
    keep,
    load_baseline,
    ratios,
    regressions,
    save_baseline,
)
from bench.plot import cost_plot
from bench.report import markdown, show
from bench.suite import FULL, QUICK, Suite, compiler, edits, established, of_file, packets
from bpfilter.errors import BpfilterError


class Format(StrEnum):
    """What is written to standard output."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"


_PARTS = "packets,compiler,edits,streams"


def main(
    quick: Annotated[bool, typer.Option(help="Minutes instead of a quarter of an hour.")] = False,
    only: Annotated[str, typer.Option(help="Of packets, compiler, edits, streams.")] = _PARTS,
    ruleset: Annotated[
        Path | None, typer.Option(exists=True, help="A file of iptables-save, instead of ours.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="table, markdown, json.")] = (
        Format.TABLE
    ),
    seed: Annotated[int, typer.Option(help="Equal seeds give equal rulesets and packets.")] = 1,
    proof: Annotated[int, typer.Option(help="Prove plans of up to so many rules.")] = 10_000,
    baseline: Annotated[Path, typer.Option(help="Ratios to compare with.")] = BASELINE,
    save: Annotated[bool, typer.Option("--save-baseline", help="Make this the baseline.")] = False,
) -> None:
    """Measure packets, compiler, edits and streams; exit 1 if a path became slower."""
    console = Console(stderr=output is not Format.TABLE)
    console.width = max(console.width, 130)
    results = _measure(
        set(only.split(",")), QUICK if quick else FULL, ruleset, seed, proof, console
    )
    run = document(results, seed)
    keep(run)
    reached = goals(results)
    (RESULTS / "report.md").write_text(
        markdown(results.rows, results.compiled, reached, f"bpfilter, {run['time']}")
    )
    for name in {row.name for row in results.rows}:
        chosen = [
            row
            for row in results.rows
            if (row.name, row.verdict, row.match) == (name, "drop", "random")
        ]
        if len({row.rules for row in chosen}) > 1:
            (RESULTS / f"{name}.svg").write_text(cost_plot(chosen, f"{name}: dropped packets"))
    if output is Format.JSON:
        typer.echo(json.dumps(run["rows"], indent=1))
    elif output is Format.MARKDOWN:
        typer.echo((RESULTS / "report.md").read_text())
    else:
        show(results.rows, results.compiled, reached, console)
    console.print(f"kept in {HISTORY}; report and plots in {RESULTS}")
    slower = list(regressions(ratios(results.rows), load_baseline(baseline)))
    for one in slower:
        console.print(f"[bold red]slower[/]: {one.key}: {one.before:.2f} → {one.now:.2f}")
    if save:
        save_baseline(results.rows, baseline)
    raise typer.Exit(1 if slower and not save else 0)


def _measure(
    parts: set[str], suite: Suite, ruleset: Path | None, seed: int, proof: int, console: Console
) -> Results:
    """What this process may measure: without root the compiler alone."""
    root = os.geteuid() == 0

    def say(line: str) -> None:
        console.print(f"{line} …", style="dim")

    if not root:
        say("not root: nothing is loaded or sent, the compiler alone is measured")
        parts = parts & {"compiler"}
    if ruleset is not None:
        return Results(rows=list(of_file(ruleset, seed, suite.pace, say)) if root else [])
    rows = list(packets(suite, seed, say)) if "packets" in parts else []
    compiled = (
        list(compiler(suite, seed, say, proof=proof, running=root)) if "compiler" in parts else []
    )
    changed = list(edits(suite, say)) if "edits" in parts else []
    rates = {}
    if "streams" in parts:
        if shutil.which("iperf3"):
            rates = established(suite, say)
        else:
            say("iperf3 is missing: no streams")
    return Results(rows, compiled, changed, rates)


if __name__ == "__main__":
    try:
        typer.run(main)
    except BpfilterError as error:
        Console(stderr=True).print(f"[bold red]bench[/]: {error}")
        raise SystemExit(error.exit_code) from None
