"""`bpfilter diff`: which packets two rulesets treat differently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bpfilter.api.differences import differences
from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, of_host
from bpfilter.cli.plan import BackendOption, FamilyOption, Form, FormOption, load, print_document
from bpfilter.cli.remote import sent
from bpfilter.errors import UsageError
from bpfilter.report.difference import render_difference
from bpfilter.report.document import Document
from bpfilter.report.markdown import difference_markdown
from bpfilter.report.page import difference_page
from bpfilter.report.terminal import terminal
from bpfilter.rollout.enforced import is_enforced, read_enforced
from bpfilter.rollout.journal import state_directory
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset

LIVE, ENFORCED = "live", "enforced"
_HOSTS = frozenset({LIVE, ENFORCED})
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
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Say which packets change verdict between two rulesets. Changes nothing.

    Not a text diff: rules that move or are rewritten without effect change nothing, and
    "no packet changes verdict" is proven. [bold]enforced[/] are the rules that programs decide by,
    or did last. With --url, and for who is not root, the REST API compares; files are sent to it.
    Exit codes: 0 no change · 2 there is one · 1 failed.

    Examples: [cyan]bpfilter diff new.rules[/] · [cyan]bpfilter diff enforced live[/]
    """
    if len(rulesets) > 2:
        raise UsageError("two rulesets are compared", hint="bpfilter diff [OLD] NEW")
    if rulesets == ["-", "-"]:
        raise UsageError("both rulesets cannot be standard input", hint="name a file for one")
    named = len(rulesets) == 1 or not _HOSTS.isdisjoint(rulesets)
    daemon = of_host(url, token_file, ca, cert, rules=named)
    if daemon is not None:
        asked = {"family": family, "backend": backend, "seconds": seconds}
        before, after = ("standing", *rulesets)[-2:]
        wanted = {**_side("old", before), **_side("new", after), **asked}
        with terminal(stderr=True).status("comparing") as status:
            document = daemon.operate("/v1/diffs", wanted, status.update)
        _show(document, output)
    directory = state or state_directory()
    standing = ENFORCED if is_enforced(directory) else LIVE
    old, new = rulesets if len(rulesets) == 2 else (standing, rulesets[0])
    with terminal(stderr=True).status("comparing") as status:
        if len(rulesets) == 1 and family is None:
            right = _read(new, backend, None, directory)
            left = _read(old, backend, right.family, directory)
        else:
            left = _read(old, backend, family, directory)
            right = _read(new, backend, family or left.family, directory)
        traffic = directory if old in _HOSTS else None
        document = differences(left, right, traffic, seconds, status.update)
    _show(document, output)


def _side(name: str, ruleset: str) -> dict[str, str | None]:
    """One side of a diff as the API takes it."""
    if ruleset in (*_HOSTS, "standing"):
        return {f"{name}_state": ruleset}
    return {name: sent(ruleset)}


def _show(document: Document, output: Form) -> NoReturn:
    if output is Form.TEXT:
        render_difference(document, terminal())
    else:
        print_document(document, output, difference_markdown, difference_page)
    raise typer.Exit(0 if document["same"] else _CHANGES)


def _read(name: str, backend: Backend | None, family: Family | None, directory: Path) -> Ruleset:
    if name == ENFORCED:
        return read_enforced(directory, family or Family.IPV4)
    return load(None if name == LIVE else name, backend, family)
