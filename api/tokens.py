"""The file of bearer tokens: made, taken back, and read again when it changed.

A token is 256 random bits that are shown once; the file holds `name role sha256-hex` lines only.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from bpfilter.api.identity import Role, Token, read_tokens
from bpfilter.errors import UsageError
from bpfilter.settings import SettingsError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MODE = 0o600


def add_token(path: Path, name: str, role: Role) -> str:
    """The new token; its line is in the file, which is made if need be, mode 0600."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no name for a token", hint="letters, digits and . _ -")
    text, known = _content(path)
    if any(token.name == name for token in known):
        raise UsageError(f"{path} has a token {name}", hint="revoke it first, or use another name")
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    if text and not text.endswith("\n"):
        text += "\n"
    _replace(path, f"{text}{name} {role.name.lower()} {digest}\n")
    return secret


def revoke_token(path: Path, name: str) -> None:
    """Take a token's line out; a server that runs refuses the token from then on."""
    text, known = _content(path)
    if all(token.name != name for token in known):
        raise UsageError(f"{path} has no token {name}", hint="see the first word of its lines")
    kept = [line for line in text.splitlines() if line.partition("#")[0].split()[:1] != [name]]
    _replace(path, "".join(f"{line}\n" for line in kept))


def _content(path: Path) -> tuple[str, tuple[Token, ...]]:
    if not path.exists():
        return "", ()
    return path.read_text("utf-8"), read_tokens(path)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, whoever reads meanwhile."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), _MODE)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}", hint="`api.tcp.tokens` names it"
        ) from None


class TokenFile:
    """The tokens of a file as they are now."""

    def __init__(self, path: Path) -> None:
        """SettingsError if it cannot be used."""
        self._path = path
        self._seen = self._stamp()
        self._tokens = read_tokens(path)

    def tokens(self) -> tuple[Token, ...]:
        """Read again if the file changed; none while it cannot be read: nobody is let in by it."""
        stamp = self._stamp()
        if stamp != self._seen:
            try:
                self._tokens = read_tokens(self._path)
            except SettingsError:
                self._tokens = ()
            self._seen = stamp
        return self._tokens

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
