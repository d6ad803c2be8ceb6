"""`bpfilter dashboard`: for this user's browser. Exit codes: 0 ended, 1 failed, 64 usage."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from socket import socket as Socket
from typing import Annotated, Any

import typer

from bpfilter.cli.connection import SOCKET
from bpfilter.report.terminal import terminal


def dashboard_command(
    socket: Annotated[Path, typer.Option(help="The API's unix socket.")] = SOCKET,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: one that is free.")
    ] = 0,
) -> None:
    """Open the dashboard on 127.0.0.1 until Ctrl-C; the address that is printed works once.

    You may there what your user may on the unix socket.

    Example: [cyan]bpfilter dashboard[/]
    """
    from bpfilter.api.dashboard.proxy import Proxy, invited, listener

    with listener(port) as open_port:
        proxy = Proxy(socket, open_port.getsockname()[1])
        typer.echo(proxy.address(invited(socket)))
        terminal(stderr=True).print("Open this address in a browser here; Ctrl-C ends.")
        asyncio.run(_serve(proxy, open_port))


async def _serve(proxy: Any, open_port: Socket) -> None:
    from bpfilter.api.server import server

    running = server(proxy, seconds_to_finish=1)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        running.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await running.serve(sockets=[open_port])
