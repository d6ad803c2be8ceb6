"""`bpfilter diff`: which packets two rulesets treat differently."""

from __future__ import annotations

from typing import Annotated

import typer

from bpfilter.analysis.difference import HOOKS, compare
from bpfilter.cli.plan import BackendOption, FamilyOption, Form, FormOption, load, print_document
from bpfilter.errors import UsageError
from bpfilter.report.difference import difference_document, render_difference
from bpfilter.report.markdown import difference_markdown
from bpfilter.report.page import difference_page
from bpfilter.report.terminal import terminal
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset

LIVE = "live"
_CHANGES = 2


def diff_command(
    old: Annotated[str, typer.Argument(metavar="OLD", help="iptables-save text, -, or `live`.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="iptables-save text, -, or `live`.")],
    backend: BackendOption = None,
    family: FamilyOption = None,
    output: FormOption = Form.TEXT,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time bound for following packets of one chain.")
    ] = 4.0,
) -> None:
    """Say which packets change verdict between two rulesets. Changes nothing.

    Not a text diff: rules that move or are rewritten without effect change nothing, and
    "no packet changes verdict" is proven. Exit codes: 0 no change · 2 there is one · 1 failed.

    Example: [cyan]bpfilter diff live new.rules[/]
    """
    if old == new == "-":
        raise UsageError("both rulesets cannot be standard input", hint="name a file for one")
    with terminal(stderr=True).status("comparing") as status:
        left = _read(old, backend, family)
        right = _read(new, backend, family or left.family)
        found = []
        for hook in HOOKS:
            status.update(f"comparing {hook[0]} {hook[1]}")
            compared = compare(left, right, hook, seconds=seconds)
            if compared is not None:
                found.append(compared)
        document = difference_document(left, right, found)
    if output is Form.TEXT:
        render_difference(document, terminal())
    else:
        print_document(document, output, difference_markdown, difference_page)
    raise typer.Exit(0 if document["same"] else _CHANGES)


def _read(name: str, backend: Backend | None, family: Family | None) -> Ruleset:
    return load(None if name == LIVE else name, backend, family)
