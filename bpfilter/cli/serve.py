"""`bpfilter serve`: the REST API of this network namespace, on a unix socket and if asked over TLS.

A process of its own: it talks to `bpfilterd` through the journal, so nothing that clients do can
delay the renewal of a lease, and its end changes nothing that is deployed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpfilter.settings import FILE


def serve_command(
    config: Annotated[Path, typer.Option(help="The configuration.")] = FILE,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Only say whether the configuration is good.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the journal, default by namespace.")
    ] = None,
    supervised: Annotated[
        bool, typer.Option("--supervised", hidden=True, help="Go when standard input ends.")
    ] = False,
    passed: Annotated[
        list[int] | None, typer.Option(hidden=True, help="Numbers of sockets to serve on.")
    ] = None,
) -> None:
    """Serve the REST API (OpenAPI at /v1/openapi.json) and the dashboard at /dashboard/.

    Example: [cyan]curl --unix-socket /run/bpfilterd/api.sock http://d/v1/deployment[/]
    """
    from bpfilter.cli.serving import serve

    serve(config, state, passed or [], check=check_config, supervised=supervised)
