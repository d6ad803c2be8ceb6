"""`bpfilter report` and `shadow`: what happened while predictions were compared.

Exit codes: 0 nothing stands against the next stage, 1 failed, 2 something does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from bpfilter.analysis.explain import explain
from bpfilter.cli.connection import Ca, Cert, Local, State, TokenFile, Url, connect
from bpfilter.errors import BpfilterError
from bpfilter.report.asked import sample_packet
from bpfilter.report.explain import rule_text
from bpfilter.report.shadow import render_shadow, shadow_document, shadow_markdown
from bpfilter.report.terminal import terminal
from bpfilter.rollout.live import read_operators

_NOT_YET = 2
_EXPLAINED = 8


class ReportForm(StrEnum):
    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


def report_command(
    form: Annotated[
        ReportForm, typer.Option("--format", help="text, json or markdown.")
    ] = ReportForm.TEXT,
    every: Annotated[bool, typer.Option("--all", "-a", help="List every rule.")] = False,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> int:
    """The shadow report: what was predicted, what iptables did, and which rules were exercised.

    Mismatches come with their packet and the rules' path; `bpfilter explain --mismatch ID` has
    more. Exit codes: 0 nothing stands against the next stage · 2 something does · 1 failed.

    Example: [cyan]bpfilter report --format markdown > shadow.md[/]
    """
    daemon = connect(url, state, token_file, ca, cert)
    with terminal(stderr=True).status("asking the daemon"):
        detail = daemon.detail()
        samples = () if detail["comparison"] is None else detail["comparison"]["samples"]
        paths = _paths(samples[:_EXPLAINED]) if isinstance(daemon, Local) else {}
        document = shadow_document(daemon.status(), detail, paths)
    if form is ReportForm.JSON:
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    elif form is ReportForm.MARKDOWN:
        sys.stdout.write(shadow_markdown(document))
    else:
        render_shadow(document, terminal(), every=every)
    return 0 if document["promotion"]["allowed"] else _NOT_YET


def _paths(samples: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[str]]:
    """By which rules iptables judges such packets now; nothing of those that it cannot say."""
    found: dict[str, Sequence[str]] = {}
    for sample in samples:
        try:
            question = sample_packet(sample)
            said = explain(read_operators(question.family), question)
        except BpfilterError:
            continue
        steps = said.paths[0].steps
        found[sample["id"]] = [f"{s.rule} {rule_text(said.ruleset, s.rule)}" for s in steps]
    return found
