"""`bpfilter shadow`: predict and compare, decide nothing. Exit codes: 0 done, 1 failed."""

from __future__ import annotations

from typing import Annotated

import typer

from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, connect
from bpfilter.cli.deploy import deploy_command
from bpfilter.cli.plan import BackendOption
from bpfilter.errors import UsageError
from bpfilter.rollout.journal import Stage


def shadow_command(
    interface: Annotated[
        list[str] | None, typer.Option("--interface", "-i", help="Interface; repeatable.")
    ] = None,
    backend: BackendOption = None,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Start the shadow stage: programs predict, iptables decides, and the two are compared.

    The same as [cyan]bpfilter deploy --stage shadow[/]; `bpfilter report` says what was found.

    Example: [cyan]bpfilter shadow --interface eth0[/]
    """
    present = connect(url, state, token_file, ca, cert).status()["stage"]
    if present != Stage.OFF:
        raise UsageError(
            f"stage {present} is reached already",
            hint="`bpfilter report` says what was compared; `bpfilter rollback` goes back to off",
        )
    deploy_command(
        interface=interface,
        stage=Stage.SHADOW,
        backend=backend,
        state=state,
        url=url,
        token_file=token_file,
        ca=ca,
        cert=cert,
    )
