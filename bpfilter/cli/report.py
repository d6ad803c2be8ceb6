"""`bpfilter report` and `shadow`: what happened while predictions were compared.

Exit codes: 0 nothing stands against the next stage, 1 failed, 2 something does.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, connect
from bpfilter.cli.plan import Form, FormOption, print_document
from bpfilter.report.page import shadow_page
from bpfilter.report.shadow_markdown import shadow_markdown
from bpfilter.report.shadow_text import render_shadow
from bpfilter.report.terminal import terminal

_NOT_YET = 2


def report_command(
    form: FormOption = Form.TEXT,
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

    Example: [cyan]bpfilter report --format html > shadow.html[/]
    """
    daemon = connect(url, state, token_file, ca, cert)
    with terminal(stderr=True).status("asking the daemon"):
        document = daemon.report()
    if form is Form.TEXT:
        render_shadow(document, terminal(), every=every)
    else:
        print_document(document, form, shadow_markdown, shadow_page)
    return 0 if document["promotion"]["allowed"] else _NOT_YET
