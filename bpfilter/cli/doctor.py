"""`bpfilter doctor`: what on this host stands for and against bpfilter, and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bpfilter.cli.connection import Ca, Cert, TokenFile, Url, of_host
from bpfilter.cli.plan import Format
from bpfilter.report.terminal import terminal
from bpfilter.rollout.doctor import Finding, Level, examine

SCHEMA_VERSION = 1
_STYLES = {Level.GOOD: "green", Level.NOTE: "yellow", Level.PROBLEM: "bold red"}


def doctor_command(
    output: Annotated[Format, typer.Option("--format", help="Report form.")] = Format.TEXT,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Look at the kernel, the rules, the interfaces and what else uses them. Changes nothing.

    With --url, and for who is not root, the service on the host looks.

    Exit codes: 0 nothing in the way · 1 there are problems, each with what to do about it.
    """
    daemon = of_host(url, token_file, ca, cert, rules=True)
    with terminal(stderr=True).status("looking"):
        findings = examine() if daemon is None else tuple(map(_finding, daemon.host()))
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if output is Format.JSON:
        document = {
            "schema_version": SCHEMA_VERSION,
            "problems": problems,
            "findings": [asdict(finding) for finding in findings],
        }
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        terminal().print(_table(findings))
    raise typer.Exit(1 if problems else 0)


def _finding(document: Mapping[str, Any]) -> Finding:
    return Finding(**{**document, "level": Level(document["level"])})


def _table(findings: tuple[Finding, ...]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        what = Text(finding.what)
        if finding.hint:
            what.append(f"\n→ {finding.hint}", style="cyan")
        table.add_row(Text(finding.level, _STYLES[finding.level]), finding.subject, what)
    return table
