"""`bpfilter verify`: the lab on this kernel."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bpfilter.cli.connection import Ca, Cert, TokenFile, Url, of_host
from bpfilter.cli.plan import BackendOption, FamilyOption, Format, RulesetOption, load
from bpfilter.errors import UsageError
from bpfilter.lab.report import ChainReport, Divergence, Report, Tally
from bpfilter.lab.verify import Request, verify
from bpfilter.report.terminal import terminal
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.tools import default_backend

_REASONS_SHOWN, _RULES_SHOWN = 20, 3


def verify_command(
    ruleset: RulesetOption = None,
    backend: BackendOption = None,
    family: FamilyOption = None,
    packets: Annotated[
        int, typer.Option("--packets", min=1, max=40_000, help="Packets for each chain.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Makes a run repeatable.")] = 1,
    output: Annotated[Format, typer.Option("--format", help="Report form.")] = Format.TEXT,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every rule that was not reached.")
    ] = False,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> int:
    """Send packets through real iptables and through the program, and compare.

    In network namespaces of its own: the host's rules and interfaces are not touched. Exit code 1
    if they differ anywhere. With --url the rules are those that are live there, and the kernel is
    the one here.

    Example: [cyan]bpfilter verify --ruleset rules.v4 --packets 5000[/]
    """
    with terminal(stderr=True).status("reading the ruleset") as status:
        daemon = of_host(url, token_file, ca, cert, rules=False)
        if daemon is None:
            source = load(ruleset, backend, family)
        elif ruleset is None:
            source = daemon.rules(family or Family.IPV4)
        else:
            raise UsageError("--ruleset and --url exclude each other", hint="leave one out")
        file = ruleset is not None and ruleset != "-"
        request = Request(
            source,
            backend or source.backend or default_backend(),
            packets=packets,
            seed=seed,
            text=Path(ruleset).read_bytes() if file and ruleset is not None else None,
            cutover=cutover,
        )
        report = verify(request, status.update)
    if output is Format.JSON:
        json.dump(report.as_json(), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        render_report(report, terminal(), verbose)
    return 0 if report.holds else 1


def render_report(report: Report, console: Console, verbose: bool) -> None:
    """The report as text; `verbose` lists every rule that was not reached."""
    console.print(
        f"[bold]{escape(report.source)}[/] {report.family} with iptables-{report.backend},"
        f" seed {report.seed}"
    )
    for chain in report.chains:
        console.print(_table(chain))
        if chain.cutover is None:
            console.print(f"  no cutover: {escape(chain.cutover_note)}")
        _render_missed(chain, console, verbose)
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    for divergence in report.divergences:
        _render_divergence(divergence, console)
    spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.seconds.items())
    console.print(f"[dim]seconds: {spent}[/]")
    sent = sum(chain.shadow.packets for chain in report.chains)
    verdict = "[green]no divergence[/]" if report.holds else "[bold red]DIVERGED[/]"
    console.print(f"{sent} packets: {verdict}")


def _table(chain: ChainReport) -> Table:
    reached = f"{chain.hit} of {chain.rules} rules reached"
    table = Table(title=f"{chain.chain}: {reached}", title_justify="left", show_header=True)
    table.add_column("")
    table.add_column("shadow", justify="right")
    table.add_column("cutover", justify="right")
    for name, one, other in _lines(chain.shadow, chain.cutover):
        table.add_row(name, one, other)
    for state, count in chain.states.items():
        table.add_row(f"[dim]were {state}[/]", str(count), "")
    for cause, count in chain.unsendable.items():
        table.add_row(f"[dim]not sent: {escape(cause)}[/]", str(count), "")
    return table


def _lines(shadow: Tally, cutover: Tally | None) -> list[tuple[str, str, str]]:
    def cell(tally: Tally | None, value: int) -> str:
        return "" if tally is None else str(value)

    lines = [
        ("packets", str(shadow.packets), cell(cutover, cutover.packets if cutover else 0)),
        ("agree", str(shadow.matched), cell(cutover, cutover.matched if cutover else 0)),
        ("differ", str(shadow.mismatched), cell(cutover, cutover.mismatched if cutover else 0)),
    ]
    for title, field in (("punted", "punted"), ("not comparable", "not_comparable")):
        one: Mapping[str, int] = getattr(shadow, field)
        other: Mapping[str, int] = {} if cutover is None else getattr(cutover, field)
        for cause in dict.fromkeys((*one, *other)):
            lines.append(
                (
                    f"{title}: {escape(cause)}",
                    str(one.get(cause, 0)),
                    cell(cutover, other.get(cause, 0)),
                )
            )
    return lines


def _render_missed(chain: ChainReport, console: Console, verbose: bool) -> None:
    if chain.unreachable:
        console.print(f"  {chain.unreachable} rules can be reached by no packet")
    if verbose:
        for missed in chain.missed:
            console.print(f"  not reached: {escape(missed.rule)} — {escape(missed.reason)}")
        return
    reasons = chain.missed_by_reason()
    for reason, rules in list(reasons.items())[:_REASONS_SHOWN]:
        more = f" and {len(rules) - _RULES_SHOWN} more" if len(rules) > _RULES_SHOWN else ""
        names = ", ".join(rules[:_RULES_SHOWN])
        console.print(f"  not reached: {escape(names)}{more} — {escape(reason)}")
    if len(reasons) > _REASONS_SHOWN:
        rest = sum(len(rules) for rules in list(reasons.values())[_REASONS_SHOWN:])
        console.print(f"  … and {rest} more rules; --verbose lists them")


def _render_divergence(divergence: Divergence, console: Console) -> None:
    console.print(f"[bold red]{divergence.run}[/]: {escape(divergence.cause)}")
    if divergence.packet:
        fields = " ".join(f"{name}={value}" for name, value in divergence.packet.items())
        console.print(f"  packet in state {divergence.state}: {escape(fields)}")
        console.print(f"  by the program: {escape(' → '.join(divergence.program_path))}")
    if divergence.kernel_path:
        console.print(f"  by iptables:    {escape(' → '.join(divergence.kernel_path))}")
