"""`bpfilter counters`: the rules' counters, with what programs decided. Exit codes: 0, 1 failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, connect
from bpfilter.cli.plan import FamilyOption, Format
from bpfilter.report.safe import harmless
from bpfilter.report.terminal import terminal
from bpfilter.rollout.listing import listed
from bpfilter.ruleset.fields import Family


def counters_command(
    listing: Annotated[
        bool, typer.Option("--iptables", help="As `iptables -nvxL` prints them, merged.")
    ] = False,
    table: Annotated[str, typer.Option("--table", "-t", help="With --iptables.")] = "filter",
    family: FamilyOption = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also rules that saw nothing.")
    ] = False,
    form: Annotated[Format, typer.Option("--format", help="text or json.")] = Format.TEXT,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """What the rules' counters would be without bpfilter: the kernel's and what programs decided.

    Packets that programs decide do not move the original rules' counters. Where only the
    connection state says at which rule a packet ends, it is [bold]possible[/] at each of them and
    counted at none.

    Examples: [cyan]bpfilter counters[/] · [cyan]bpfilter counters --iptables --table filter[/]
    """
    families = tuple(Family) if family is None else (family,)
    if listing:
        families = (family or Family.IPV4,)
    found = connect(url, state, token_file, ca, cert).counters(families)
    if form is Format.JSON:
        typer.echo(json.dumps(found, indent=1))
    elif listing:
        for line in listed(found, families[0], table):
            typer.echo(harmless(line))
    else:
        _print(found["rules"], every)


def _print(rules: Sequence[Mapping[str, Any]], every: bool) -> None:
    table = Table("rule", box=None, pad_edge=False)
    for name in ("packets", "kernel", "decided", "possible"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for rule in rules:
        if not (every or rule["packets"] or rule["possible"]):
            continue
        name = f"{rule['family']} {rule['table']}/{rule['chain']}/{rule['number']}"
        numbers = (rule["packets"], rule["kernel"]["packets"], rule["decided"]["packets"])
        cells = [Text(str(number)) for number in (*numbers, rule["possible"])]
        table.add_row(Text(name), *cells, Text(rule["text"]))
    terminal().print(table)
