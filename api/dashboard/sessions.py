"""Sessions of browsers, and the invitations that open one: kept in memory, by hash, for a time.

A restart of the API's process ends them all.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

LASTS = 8 * 3600.0
"""Seconds from signing in until one has to sign in again."""
INVITED = 120.0
"""Seconds in which an invitation can be used."""
_MOST = 256


@dataclass(frozen=True, slots=True)
class Holder:
    """What a session stands for: a user on the unix socket, or the hash of a bearer token."""

    uid: int | None = None
    token: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    holder: Holder
    ends: float


class Secrets:
    """Random names that stand for holders for some seconds; the oldest go when there are many."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def new(self, holder: Holder) -> str:
        """A name of 256 random bits, of which only the hash stays here."""
        secret = secrets.token_urlsafe(32)
        self._kept[_digest(secret)] = _Kept(holder, self._clock() + self._seconds)
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return secret

    def holder(self, secret: str) -> Holder | None:
        """Whose it is; None if it is unknown or over."""
        found = self._kept.get(_digest(secret))
        if found is None:
            return None
        if self._clock() >= found.ends:
            self.end(secret)
            return None
        return found.holder

    def end(self, secret: str) -> None:
        """It is unknown from now on."""
        self._kept.pop(_digest(secret), None)

    def take(self, secret: str) -> Holder | None:
        """As `holder`, once."""
        found = self.holder(secret)
        self.end(secret)
        return found


def csrf_token(session: str) -> str:
    """What forms of a session carry: it follows from the session's name, which scripts never see,
    and says nothing of it.
    """
    return hmac.new(session.encode(), b"bpfilter dashboard form", hashlib.sha256).hexdigest()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
