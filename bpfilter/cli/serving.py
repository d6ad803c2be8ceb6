"""Serving the REST API and the dashboard until a signal or the end of who supervises it.

Apart from the command, so that only who serves loads what serving takes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from bpfilter.settings import Deployment, Settings, load

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NICER = 5
"""The daemon renews its lease first, whatever clients do."""


def serve(
    config: Path, state: Path | None, passed: Sequence[int], *, check: bool, supervised: bool
) -> None:
    """Serve as the configuration says; with `check` only say that it is good.

    `passed`: numbers of sockets to serve on. `supervised`: go when standard input ends.
    """
    settings = load(config)
    guard = Guard(settings.api)
    if check:
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
    given = [socket.socket(fileno=number) for number in passed]
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
