"""Who calls, and what they may do.

On the unix socket the kernel says who the peer is (SO_PEERCRED gives the user and the primary
group, SO_PEERGROUPS the supplementary ones: unix(7), net/core/sock.c). On TCP it is a client
certificate or a bearer token, of which only the SHA-256 is stored.
"""

from __future__ import annotations

import ctypes
import grp
import hashlib
import hmac
import os
import pwd
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from bpfilter.settings import Roles, SettingsError

SO_PEERGROUPS = 59
_MOST_GROUPS = 65536
_CREDENTIALS = struct.Struct("=iII")


class Role(IntEnum):
    """What a caller may do; each includes those below it."""

    NONE = 0
    READ = 1
    OPERATE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller as the audit trail shows it."""

    name: str
    role: Role
    how: str


@dataclass(frozen=True, slots=True)
class Peer:
    """What the kernel says of the process at the other end of a unix socket."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel; OSError if the socket is no connected unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, frozenset({gid, *_supplementary(connection.fileno())}))


def _supplementary(descriptor: int) -> Sequence[int]:
    """By libc: Python's getsockopt takes no buffer above 1 KiB, which is 256 groups."""
    groups = (ctypes.c_uint32 * _MOST_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.getsockopt(
        descriptor, socket.SOL_SOCKET, SO_PEERGROUPS, groups, ctypes.byref(size)
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return groups[: size.value // ctypes.sizeof(ctypes.c_uint32)]


@dataclass(frozen=True, slots=True)
class Access:
    """The configured roles as numbers; who is in two has the higher."""

    users: tuple[tuple[int, Role], ...]
    groups: tuple[tuple[int, Role], ...]

    @classmethod
    def of(cls, roles: Roles) -> Access:
        """Look the names up; a name that this host does not know takes part in nothing."""
        users = (
            (roles.read_users, Role.READ),
            (roles.operate_users, Role.OPERATE),
            (roles.admin_users, Role.ADMIN),
        )
        groups = (
            (roles.read_groups, Role.READ),
            (roles.operate_groups, Role.OPERATE),
            (roles.admin_groups, Role.ADMIN),
        )
        return cls(
            tuple((uid, role) for names, role in users for uid in _numbers(names, _user)),
            tuple((gid, role) for names, role in groups for gid in _numbers(names, _group)),
        )

    def caller(self, peer: Peer) -> Caller:
        """The role of a peer on the unix socket; root is admin."""
        granted = [Role.ADMIN] if peer.uid == 0 else [Role.NONE]
        granted += [role for uid, role in self.users if uid == peer.uid]
        granted += [role for gid, role in self.groups if gid in peer.groups]
        return Caller(_user_name(peer.uid), max(granted), f"unix socket, pid {peer.pid}")


def _numbers(names: Iterable[str | int], look_up: object) -> list[int]:
    assert callable(look_up)
    found = [name if isinstance(name, int) else look_up(name) for name in names]
    return [number for number in found if number is not None]


def _user(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as it is stored."""

    name: str
    role: Role
    digest: bytes


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Lines `name role sha256-hex`; `#` begins a comment. SettingsError names file and line."""
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SettingsError(
                f"{path}: others than its owner may write it", hint=f"chmod go-w {path}"
            )
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}", hint="`api.tcp.tokens` names it") from None
    return tuple(
        _token(path, number, words)
        for number, line in enumerate(lines, 1)
        if (words := line.partition("#")[0].split())
    )


def _token(path: Path, number: int, words: Sequence[str]) -> Token:
    roles = {role.name.lower(): role for role in (Role.READ, Role.OPERATE, Role.ADMIN)}
    try:
        name, role, digest = words
        raw = bytes.fromhex(digest)
        if len(raw) != hashlib.sha256().digest_size:
            raise ValueError
        return Token(name, roles[role], raw)
    except (ValueError, KeyError):
        raise SettingsError(
            f"{path}:{number}: not `name read|operate|admin sha256-hex`",
            hint="`bpfilter token` makes a token and prints its line",
        ) from None


def caller_of_token(tokens: Iterable[Token], secret: str) -> Caller | None:
    """Whose token it is. Every stored token is compared, each in constant time."""
    digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = Caller(token.name, token.role, "bearer token")
    return found
