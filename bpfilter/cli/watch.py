"""`bpfilter watch`: a live view of the deployment. Exit codes: 0, 1 failed, 130 Ctrl-C."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bpfilter.cli.connection import Ca, Cert, Daemon, State, TokenFile, Url, connect
from bpfilter.cli.plan import Format
from bpfilter.cli.stages import event_table, print_stage
from bpfilter.errors import BpfilterError
from bpfilter.report.rates import Look, rates, seen_by
from bpfilter.report.shadow import rule_name
from bpfilter.report.terminal import SafeConsole, terminal

_TOP, _EVENTS = 10, 5


def look(daemon: Daemon) -> Look:
    """Ask for everything that the view shows."""
    status = daemon.status()
    try:
        detail = daemon.detail() if status["pid"] or status.get("running") else None
    except BpfilterError:  # it ended meanwhile
        detail = None
    return Look(time.monotonic(), status, detail, daemon.events()[-_EVENTS:])


def view(before: Look | None, now: Look) -> RenderableType:
    """What the terminal shows."""
    stage = SafeConsole(width=200, file=None, color_system=None, record=False)
    with stage.capture() as captured:
        print_stage(stage, now.status)
    parts: list[RenderableType] = [Text(captured.get().rstrip())]
    found = rates(before, now)
    if found["decided"] is not None:
        parts.append(
            Text(
                f"{found['decided']:.0f} packets/s decided, {found['punted']:.0f} left to iptables"
            )
        )
    compared = None if now.detail is None else now.detail["comparison"]
    if compared is not None and compared["mismatches"]:
        parts.append(Text(f"{compared['mismatches']} MISMATCHES: bpfilter report", "bold red"))
    if now.detail is not None:
        parts.append(_top(now.detail["rules"], found["rules"]))
    if now.events:
        parts.append(event_table(now.events))
    return Group(*parts)


def _top(rules: Sequence[Mapping[str, Any]], rate: Mapping[str, float]) -> Table:
    table = Table("top rules", box=None, pad_edge=False)
    for name in ("packets/s", "packets", "mismatches"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    busy = sorted(rules, key=lambda rule: (-rate.get(rule_name(rule), 0.0), -seen_by(rule)))
    for rule in [rule for rule in busy if seen_by(rule)][:_TOP]:
        name = rule_name(rule)
        numbers = (f"{rate.get(name, 0.0):.0f}", str(seen_by(rule)), str(rule["mismatches"]))
        table.add_row(escape(name), *numbers, Text(rule["text"]))
    return table


def watch_command(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="Look so many times; 0: until Ctrl-C.")] = 0,
    form: Annotated[
        Format, typer.Option("--format", help="text, or json: one object a look.")
    ] = Format.TEXT,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """A live view: stage, gates, pending confirmation, rates, mismatches, top rules, events.

    Example: [cyan]bpfilter watch --interval 2[/]
    """
    daemon = connect(url, state, token_file, ca, cert)
    console = terminal()
    if console.is_terminal and form is Format.TEXT:
        with Live(console=console, auto_refresh=False, screen=not count) as live:
            for before, now in _looks(daemon, interval, count):
                live.update(view(before, now), refresh=True)
        return
    for before, now in _looks(daemon, interval, count):
        if form is Format.JSON:
            typer.echo(json.dumps({"status": now.status, "rates": rates(before, now)}))
        else:
            console.print(view(before, now))


def _looks(daemon: Daemon, interval: float, count: int) -> Iterator[tuple[Look | None, Look]]:
    """Pairs of the look before and the present one."""
    before = None
    for number in itertools.count(1):
        now = look(daemon)
        yield before, now
        if number == count:
            return
        before = now
        time.sleep(interval)
