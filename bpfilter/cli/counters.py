"""`bpfilter counters`: the rules' counters, with what programs decided. Exit codes: 0, 1 failed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bpfilter.cli.connection import State
from bpfilter.cli.plan import FamilyOption, Format
from bpfilter.errors import RolloutError
from bpfilter.report.safe import harmless
from bpfilter.report.terminal import terminal
from bpfilter.rollout.counters import counters
from bpfilter.rollout.journal import state_directory
from bpfilter.rollout.ours import bears_our_name
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.tools import run

_CHAIN = re.compile(r"Chain (\S+) (\(.*)")
_POLICY = re.compile(r"\(policy (\S+) \d+ packets, \d+ bytes\)")
_RULE = re.compile(r" *(\d+) +(\d+) (.*)")
_TRIES = 3


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
    found = counters(state or state_directory(), families)
    if form is Format.JSON:
        typer.echo(json.dumps(found, indent=1))
    elif listing:
        for line in _listed(found, families[0], table):
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


def _listed(found: Mapping[str, Any], family: Family, table: str) -> Iterator[str]:
    """iptables' own listing with other numbers in it, and without our chains."""
    numbers = {
        (rule["chain"], rule["number"]): rule for rule in found["rules"] if rule["table"] == table
    }
    name = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{found['backend']}"
    for _ in range(_TRIES):
        code, output, errors = run(name, ["-t", table, "-nvxL"])
        if code != 0:
            raise RolloutError(
                f"{name} cannot list {table}: {errors}", hint="--table raw, mangle …"
            )
        lines = list(_merged(output.decode("utf-8", "surrogateescape"), numbers))
        if sum(counted for counted, _ in lines) == len(numbers):
            yield from (line for _, line in lines)
            return
    raise RolloutError("the rules change all the time", hint="try again")


def _merged(
    output: str, numbers: Mapping[tuple[str, int], Mapping[str, Any]]
) -> Iterator[tuple[bool, str]]:
    """Lines, and whether each stands for one of the numbers."""
    chain, number, mine = "", 0, False
    for line in output.splitlines():
        if head := _CHAIN.fullmatch(line):
            chain, number = head[1], 0
            mine = bears_our_name(chain)
            policy, rule = _POLICY.fullmatch(head[2]), numbers.get((chain, 0))
            if policy is not None and rule is not None:
                counted = f"{rule['packets']} packets, {rule['bytes']} bytes"
                yield True, f"Chain {chain} (policy {policy[1]} {counted}){_possible(rule)}"
            elif not mine:
                yield False, line
        elif mine:
            continue
        elif (match := _RULE.fullmatch(line)) is None:
            yield False, line
        elif not bears_our_name(match[3].split(" ", 1)[0]):
            number += 1
            rule = numbers.get((chain, number))
            if rule is not None:
                counted = f"{rule['packets']:8d} {rule['bytes']:8d}"
                yield True, f"{counted} {match[3].rstrip()}{_possible(rule)}"


def _possible(rule: Mapping[str, Any]) -> str:
    return f" /* and up to {rule['possible']} by connection state */" if rule["possible"] else ""
