"""uvicorn on sockets that we bind ourselves: a unix socket with our mode and group, TLS over TCP.

uvicorn would make its unix socket world-writable. Each connection's peer is asked of the kernel
once and reaches the application as `request.state.peer`, a client certificate's common name as
`request.state.certificate`.
"""

from __future__ import annotations

import grp
import os
import socket
import ssl
import stat
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bpfilter.api.identity import peer_of
from bpfilter.errors import BpfilterError
from bpfilter.settings import SettingsError, Tcp

_MODE = 0o660
_BACKLOG = 512
_LARGEST_HEAD = 32 << 10
_FIRST_PASSED_DESCRIPTOR = 3


class _Protocol(H11Protocol):
    """Notes who is at the other end before the first request."""

    def connection_made(self, transport: Any) -> None:
        self.app_state = dict(self.app_state)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family == socket.AF_UNIX:
            self.app_state["peer"] = peer_of(connection)
        certificate = transport.get_extra_info("peercert")
        if certificate:
            self.app_state["certificate"] = _common_name(certificate)
        super().connection_made(transport)


def _common_name(certificate: Any) -> str | None:
    names = (pair for part in certificate.get("subject", ()) for pair in part)
    return next((value for key, value in names if key == "commonName"), None)


def server(app: Any, *, tls: Tcp | None = None, seconds_to_finish: int = 5) -> uvicorn.Server:
    """A server for `serve(sockets=[…])`; TLS if given. It leaves signals and logging to others."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=seconds_to_finish,
        h11_max_incomplete_event_size=_LARGEST_HEAD,
        backlog=_BACKLOG,
    )
    if tls is not None:
        config.load()
        config.ssl = _tls(tls)
    return _Server(config)


class _Server(uvicorn.Server):
    """The daemon handles signals itself."""

    def capture_signals(self) -> Any:
        return nullcontext()


def _tls(tcp: Tcp) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tcp.certificate, tcp.key)
        if tcp.client_ca is not None:
            context.load_verify_locations(tcp.client_ca)
            # With tokens configured a client may come without a certificate.
            context.verify_mode = ssl.CERT_OPTIONAL if tcp.tokens else ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"api.tcp: the certificate, key or client_ca cannot be used: {error}",
            hint="they are PEM files that the daemon can read",
        ) from None
    return context


def passed_sockets() -> list[socket.socket]:
    """Sockets that systemd hands over (sd_listen_fds(3)); none without it."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    first = _FIRST_PASSED_DESCRIPTOR
    return [socket.socket(fileno=descriptor) for descriptor in range(first, first + count)]


def bind_unix(path: Path, group: str) -> socket.socket:
    """A listening unix socket, mode 0660, owned by the group where the host has it.

    Takes the place of a socket that nobody listens on; BpfilterError if a daemon lives there.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o777 & ~_MODE)
    try:
        listener.bind(str(path))
        with_group = _group_id(group)
        if with_group is not None:
            os.chown(path, -1, with_group)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"api.socket: cannot listen on {path}: {error.strerror}",
            hint="the directory must exist and the path be shorter than 108 bytes",
        ) from None
    finally:
        os.umask(before)
    return listener


def bind_tcp(tcp: Tcp) -> socket.socket:
    """A listening TCP socket; SettingsError if the address is not this host's or is taken."""
    try:
        found = socket.getaddrinfo(tcp.address, tcp.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"api.tcp: cannot listen on {tcp.address} port {tcp.port}: {error.strerror}",
            hint="see `ss -ltn` for who listens there, `ip address` for addresses",
        ) from None


class AlreadyRunning(BpfilterError):
    """Another daemon answers on the socket."""

    problem = "already-running"


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SettingsError(f"api.socket: {path} is no socket", hint="name another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise AlreadyRunning(f"a daemon listens on {path}", hint="stop it first, or use it")


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
