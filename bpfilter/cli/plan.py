"""`bpfilter plan`: translate a ruleset and say what becomes of every rule."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfilter.cli.connection import Ca, Cert, TokenFile, Url, of_host
from bpfilter.cli.remote import refuse_local, sent
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.compiler.plan import Plan
from bpfilter.errors import ProofFailed
from bpfilter.kernel.config import Mode
from bpfilter.kernel.described import describe_program
from bpfilter.kernel.program import Classifier, Options
from bpfilter.lab.cost import measure
from bpfilter.report.cost import cost_document
from bpfilter.report.document import Document, chains_of
from bpfilter.report.making import make_document
from bpfilter.report.markdown import plan_markdown
from bpfilter.report.page import plan_page
from bpfilter.report.passes import Pass, pass_document, render_passes
from bpfilter.report.stored import read_plan
from bpfilter.report.terminal import terminal
from bpfilter.report.text import render_plan
from bpfilter.rollout.live import read_operators
from bpfilter.rollout.management import own_connections
from bpfilter.rollout.marking import cutover
from bpfilter.rollout.outlook import outlook
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_file
from bpfilter.ruleset.second_reader import second_reading
from bpfilter.ruleset.tools import default_backend


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


class Form(StrEnum):
    """Forms of a report that people keep."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"


FormOption = Annotated[
    Form,
    typer.Option("--format", help="text, json, markdown, or html: one file, no network."),
]


RulesetOption = Annotated[
    str | None,
    typer.Option(
        "--ruleset",
        metavar="FILE|-",
        help="iptables-save text or a plan in JSON; - is standard input. Default: live.",
    ),
]
BackendOption = Annotated[
    Backend | None,
    typer.Option("--backend", help="Which iptables holds (or checks) the rules."),
]
FamilyOption = Annotated[
    Family | None,
    typer.Option(
        "--family", help="Default: what the text says of itself, else its addresses, else ipv4."
    ),
]


def load(ruleset: str | None, backend: Backend | None, family: Family | None) -> Ruleset:
    """Read the ruleset that the options name; raises RulesetRefused or LiveReadError."""
    if ruleset is None:
        live = read_operators(family or Family.IPV4, backend)
        if live.backend is Backend.LEGACY and live.tables:
            return replace(live, warnings=(*live.warnings, *second_reading(live)))
        return live
    if ruleset != "-" and (planned := read_plan(Path(ruleset))) is not None:
        return planned
    return read_file(ruleset, family=family, backend=backend)


def print_document(
    document: Document,
    form: Form,
    as_markdown: Callable[[Document], str],
    as_page: Callable[[Document], str],
) -> None:
    """Write a report's document to standard output in one of its forms but text."""
    if form is Form.MARKDOWN:
        sys.stdout.write(as_markdown(document))
    elif form is Form.HTML:
        sys.stdout.write(as_page(document))
    else:
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")


def plan_command(
    ruleset: RulesetOption = None,
    backend: BackendOption = None,
    family: FamilyOption = None,
    output: FormOption = Form.TEXT,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every rule, not only the odd ones.")
    ] = False,
    proof_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time bound of the equivalence proof of one chain.")
    ] = 30.0,
    shown: Annotated[
        Pass | None, typer.Option("--pass", help="Print what this pass of the compiler made.")
    ] = None,
    host: Annotated[
        bool | None,
        typer.Option(
            "--host/--no-host",
            help="What it would meet on this host: hooks, mark, dispatch, risks. Default: of the"
            " live rules.",
        ),
    ] = None,
    measured: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure in the lab what a packet costs, over the number of rules."
        ),
    ] = False,
    program: Annotated[
        bool,
        typer.Option("--program", help="Load the program, print what the kernel made of it."),
    ] = False,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Translate a ruleset and say what becomes of every rule. Changes nothing.

    Every rule gets a [bold]fate[/]: native (decided in BPF), residual (BPF, then its dynamic
    rest in iptables), punt (the original rules), unreachable, or kept (not taken over).

    With --url, and for who is not root, the REST API plans: the rules that are live there, or the
    file that is sent to it.

    Example: [cyan]iptables-save | bpfilter plan --ruleset -[/]
    """
    console = terminal(stderr=True)
    daemon = of_host(url, token_file, ca, cert, rules=ruleset is None)
    with console.status("reading the ruleset") as status:
        if daemon is not None:
            local = {"--pass": shown, "--program": program, "--no-host": host is False}
            local |= {"--host": host and ruleset is not None, "--measure": measured}
            refuse_local(local, "plan on that host, or fetch the rules and plan them here")
            wanted = {
                "ruleset": sent(ruleset),
                "family": family,
                "backend": backend,
                "proof_seconds": proof_seconds,
            }
            _show(daemon.operate("/v1/plans", wanted, status.update), output, verbose)
            return
        started = time.perf_counter()
        source = load(ruleset, backend, family)
        if shown is not None or program:
            _inspect(source, shown, program, output)
            return
        read = time.perf_counter() - started
        look = None
        if ruleset is None if host is None else host:
            look = partial(outlook, operator=own_connections(os.getpid()))
        cost = partial(_cost, backend=backend, say=status.update) if measured else None
        document = make_document(source, read, proof_seconds, status.update, host=look, cost=cost)
    _show(document, output, verbose)


def _show(document: Document, output: Form, verbose: bool) -> None:
    """Print a plan; ProofFailed if its tables are wrong."""
    if output is Form.TEXT:
        render_plan(document, terminal(), verbose=verbose)
    else:
        print_document(document, output, plan_markdown, plan_page)
    wrong = [chain["proof"]["counterexample"] for chain in chains_of(document)]
    if any(wrong):
        raise ProofFailed(
            f"the compiled tables do not equal the ruleset: {'; '.join(filter(None, wrong))}",
            hint="this is a defect of bpfilter: please report it with the ruleset",
        )


def _cost(plan: Plan, backend: Backend | None, say: Callable[[str], object]) -> Document:
    found = plan.ruleset.backend or backend or default_backend()
    return cost_document(measure(plan, found, cutover, say))


def _inspect(source: Ruleset, shown: Pass | None, program: bool, output: Form) -> None:
    """Print a pass and the loaded program; nothing stays loaded, nothing is attached."""
    plan = compile_ruleset(source)
    found: dict[str, Any] = {} if shown is None else {"passes": pass_document(plan, shown)}
    if program:
        options = Options(mode=Mode.LIVE_INPUT, marking=DEFAULT_MARK, leased=True, generation=True)
        with Classifier.load(assemble([plan]), options) as classifier:
            found["program"] = describe_program(classifier.fd)
    if output is Form.JSON:
        json.dump(found, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        render_passes(found, terminal())
