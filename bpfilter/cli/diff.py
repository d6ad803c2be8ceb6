"""`bpfilter diff`: which packets two rulesets treat differently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpfilter.analysis.difference import HOOKS, compare
from bpfilter.cli.connection import State
from bpfilter.cli.plan import BackendOption, FamilyOption, Form, FormOption, load, print_document
from bpfilter.errors import UsageError
from bpfilter.report.difference import difference_document, render_difference
from bpfilter.report.markdown import difference_markdown
from bpfilter.report.page import difference_page
from bpfilter.report.terminal import terminal
from bpfilter.rollout.counters import with_traffic
from bpfilter.rollout.enforced import is_enforced, read_enforced
from bpfilter.rollout.journal import state_directory
from bpfilter.rollout.shadow import judged
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset

LIVE, ENFORCED = "live", "enforced"
_CHANGES = 2


def diff_command(
    rulesets: Annotated[
        list[str],
        typer.Argument(
            metavar="[OLD] NEW",
            help="Each `live`, `enforced`, iptables-save text, a plan in JSON, or -. OLD: what is"
            " enforced, else live.",
        ),
    ],
    backend: BackendOption = None,
    family: FamilyOption = None,
    output: FormOption = Form.TEXT,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time bound for following packets of one chain.")
    ] = 4.0,
    state: State = None,
) -> None:
    """Say which packets change verdict between two rulesets. Changes nothing.

    Not a text diff: rules that move or are rewritten without effect change nothing, and
    "no packet changes verdict" is proven. [bold]enforced[/] are the rules that programs decide by,
    or did last. Exit codes: 0 no change · 2 there is one · 1 failed.

    Examples: [cyan]bpfilter diff new.rules[/] · [cyan]bpfilter diff enforced live[/]
    """
    directory = state or state_directory()
    if len(rulesets) > 2:
        raise UsageError("two rulesets are compared", hint="bpfilter diff [OLD] NEW")
    standing = ENFORCED if is_enforced(directory) else LIVE
    old, new = rulesets if len(rulesets) == 2 else (standing, rulesets[0])
    if old == new == "-":
        raise UsageError("both rulesets cannot be standard input", hint="name a file for one")
    with terminal(stderr=True).status("comparing") as status:
        if len(rulesets) == 1 and family is None:
            right = _read(new, backend, None, directory)
            left = _read(old, backend, right.family, directory)
        else:
            left = _read(old, backend, family, directory)
            right = _read(new, backend, family or left.family, directory)
        found = []
        for hook in HOOKS:
            status.update(f"comparing {hook[0]} {hook[1]}")
            compared = compare(left, right, hook, seconds=seconds)
            if compared is not None:
                found.append(compared)
        once = True
        if old in (LIVE, ENFORCED) and any(each.changes for each in found):
            status.update("reading counters")
            left, once = with_traffic(left, directory)
        document = difference_document(left, right, found, _judged(left, once))
    if output is Form.TEXT:
        render_difference(document, terminal())
    else:
        print_document(document, output, difference_markdown, difference_page)
    raise typer.Exit(0 if document["same"] else _CHANGES)


def _judged(ruleset: Ruleset, once: bool) -> dict[tuple[str, str], int | None]:
    hooks = [
        hook
        for hook in HOOKS
        if hook[0] in ruleset.tables and hook[1] in ruleset.tables[hook[0]].chains
    ]
    counts = {hook: judged(ruleset, *hook) for hook in hooks}
    return {hook: count if once or not count else None for hook, count in counts.items()}


def _read(name: str, backend: Backend | None, family: Family | None, directory: Path) -> Ruleset:
    if name == ENFORCED:
        return read_enforced(directory, family or Family.IPV4)
    return load(None if name == LIVE else name, backend, family)
