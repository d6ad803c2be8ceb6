"""`bpfilter serve`: the REST API of this network namespace, on a unix socket and if asked over TLS.

A process of its own: it talks to `bpfilterd` through the journal, so nothing that clients do can
delay the renewal of a lease, and its end changes nothing that is deployed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from bpfilter.api.access import Guard
from bpfilter.api.app import application
from bpfilter.api.audit import Trail
from bpfilter.api.dashboard.entrance import Entrance
from bpfilter.api.dashboard.routes import install
from bpfilter.api.dashboard.wishes import CONFIRM_WITHIN, Wishes
from bpfilter.api.identity import Caller
from bpfilter.api.keeper import Keeper
from bpfilter.api.server import bind_tcp, bind_unix, passed_sockets, server
from bpfilter.daemon.child import READY
from bpfilter.daemon.desired import of_settings
from bpfilter.daemon.logs import configure
from bpfilter.report.terminal import terminal
from bpfilter.rollout.journal import state_directory
from bpfilter.sd_notify import notify
from bpfilter.settings import FILE, Deployment, Settings, load

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NICER = 5
"""The daemon renews its lease first, whatever clients do."""


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
    settings = load(config)
    guard = Guard(settings.api)
    if check_config:
        terminal().print(f"{config}: good")
        return
    log = configure(settings.daemon)

    def audit(caller: Caller, what: str, detail: Any) -> None:
        sentence = f"{caller.name} ({caller.how}): {what}"
        log.info(sentence, kind="audit", caller=caller.name, by=caller.how, detail=detail)

    directory = state or state_directory()
    app = application(Keeper(directory), guard, Trail(directory), audit, settings.api)
    hosts = () if settings.api.tcp is None else settings.api.tcp.hosts
    install(app, Entrance(guard, hosts), _wishes(settings.deployment))
    given = [socket.socket(fileno=number) for number in passed or ()]
    if supervised:
        os.nice(_NICER)
    asyncio.run(_serve(app, settings, log, given or passed_sockets(), supervised))


def _wishes(section: Deployment) -> Wishes:
    return Wishes(
        gates=tuple(of_settings(section).goal["gates"]),
        confirm_within=section.confirm_within or CONFIRM_WITHIN,
        share=section.canary.share,
        interfaces=section.interfaces,
        accept_state_reset=section.accept_state_reset,
        protect=section.protect,
    )


async def _serve(
    app: Any, settings: Settings, log: Any, passed: list[socket.socket], supervised: bool
) -> None:
    unix = passed or [bind_unix(settings.api.socket, settings.api.socket_group)]
    running: list[tuple[uvicorn.Server, list[Any]]] = [(server(app), unix)]
    if settings.api.tcp is not None:
        running.append((server(app, tls=settings.api.tcp), [bind_tcp(settings.api.tcp)]))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        notify(STOPPING=1)
        for each, _ in running:
            each.should_exit = True

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    if supervised:
        loop.add_reader(sys.stdin.fileno(), stop)
    log.info("serving", socket=str(settings.api.socket), tcp=settings.api.tcp is not None)
    notify(READY=1, STATUS="serving the API")
    if supervised:
        os.write(sys.stdout.fileno(), READY)
    await asyncio.gather(*(each.serve(sockets=sockets) for each, sockets in running))
    if not passed:
        settings.api.socket.unlink(missing_ok=True)
