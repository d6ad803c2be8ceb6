"""The sockets: who may open them, who is at the other end, what is in the way."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from bpfilter.api.server import AlreadyRunning, bind_unix, passed_sockets, server
from bpfilter.settings import SettingsError


async def who(scope: dict[str, object], receive: object, send: object) -> None:
    request = Request(scope)  # type: ignore[arg-type]
    peer = request.state.peer
    answer = JSONResponse({"pid": peer.pid, "uid": peer.uid})
    await answer(scope, receive, send)  # type: ignore[arg-type]


@contextmanager
def serving(listener: socket.socket) -> Iterator[None]:
    running = server(who)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listener])))
    thread.start()
    try:
        yield
    finally:
        running.should_exit = True
        thread.join()


def test_the_application_learns_who_is_at_the_other_end(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with (
        serving(bind_unix(path, "no-such-group-here")),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://d") as client,
    ):
        assert client.get("/").json() == {"pid": os.getpid(), "uid": os.getuid()}


def test_the_socket_is_not_for_the_world(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with bind_unix(path, "no-such-group-here"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_socket_nobody_listens_on_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    bind_unix(path, "none").close()
    with bind_unix(path, "none"), pytest.raises(AlreadyRunning):
        bind_unix(path, "none")


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(SettingsError, match="no socket"):
        bind_unix(path, "none")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot listen"):
        bind_unix(tmp_path / ("x" * 120), "none")


def test_without_systemd_no_sockets_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "3")
    assert passed_sockets() == []
