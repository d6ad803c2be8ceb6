"""`bpfilter token`: a bearer token for the REST API over TLS. Exit codes: 0, 1 failed, 64 usage."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bpfilter.api.identity import Role
from bpfilter.api.tokens import add_token, revoke_token
from bpfilter.errors import UsageError
from bpfilter.report.terminal import terminal
from bpfilter.settings import FILE, load


class TokenRole(StrEnum):
    """Roles that a token may have."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


def token_command(
    name: Annotated[str, typer.Argument(help="Who will use it, as the audit trail shows it.")],
    role: Annotated[TokenRole, typer.Option(help="What it may do.")] = TokenRole.READ,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the token back.")] = False,
    tokens: Annotated[
        Path | None, typer.Option(help="The file; default: api.tcp.tokens of the configuration.")
    ] = None,
    config: Annotated[Path, typer.Option(help="The configuration.")] = FILE,
) -> None:
    """Make a token and print it, once: only its hash is stored. A running API knows it at once.

    Example: [cyan]bpfilter token prometheus --role read[/]
    """
    place = tokens or _configured(config)
    if revoke:
        revoke_token(place, name)
        terminal(stderr=True).print(f"{name} is revoked", markup=False)
        return
    typer.echo(add_token(place, name, Role[role.name]))
    terminal(stderr=True).print(
        f"{name} may {role}; the token is shown only now, its hash is in {place}", markup=False
    )


def _configured(config: Path) -> Path:
    tcp = load(config).api.tcp
    if tcp is None or tcp.tokens is None:
        raise UsageError(
            f"{config} names no file of tokens", hint="set api.tcp.tokens, or give --tokens"
        )
    return tcp.tokens
