"""From a request to its caller: the unix socket's peer, a certificate or a token."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from http import HTTPStatus

from fastapi import Request

from bpfilter.api.identity import Access, Caller, Role, Token, caller_of_token
from bpfilter.api.problems import ApiError
from bpfilter.api.tokens import TokenFile
from bpfilter.settings import Api

_FAILURES, _WINDOW_SECONDS, _CLIENTS = 10, 60.0, 4096
_ROLES = {"read": Role.READ, "operate": Role.OPERATE, "admin": Role.ADMIN}


class Guard:
    """Knows callers as the configuration says; remembers who failed too often."""

    def __init__(self, settings: Api) -> None:
        """SettingsError if the token file cannot be read."""
        self._access = Access.of(settings.roles)
        tcp = settings.tcp
        self._certificates = {} if tcp is None else dict(tcp.certificate_roles)
        self._file: TokenFile | None = None
        if tcp is not None and tcp.tokens is not None:
            self._file = TokenFile(tcp.tokens)
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def caller(self, request: Request) -> Caller:
        """Who calls; ApiError 401 if nobody knows, 429 after too many wrong tokens."""
        peer = getattr(request.state, "peer", None)
        if peer is not None:
            return self._access.caller(peer)
        name = getattr(request.state, "certificate", None)
        if name is not None and name in self._certificates:
            return Caller(name, _ROLES[self._certificates[name]], "certificate")
        return self._bearer(request)

    def _bearer(self, request: Request) -> Caller:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        found = self.by_token(request, secret if scheme.lower() == "bearer" else "")
        if found is None:
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "the caller is not known",
                hint="send a bearer token, or a client certificate with a configured name",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def by_token(self, request: Request, secret: str) -> Caller | None:
        """Whose bearer token it is; a wrong one is held against the address, ApiError 429."""
        address = request.client.host if request.client is not None else "?"
        self._refuse_guessing(address)
        found = caller_of_token(self._tokens(), secret)
        if found is None and secret:
            self._note_failure(address)
        return found

    def by_digest(self, digest: bytes) -> Caller | None:
        """Whose token has this hash now: nobody's once it is revoked."""
        for token in self._tokens():
            if hmac.compare_digest(token.digest, digest):
                return Caller(token.name, token.role, "bearer token")
        return None

    def _tokens(self) -> tuple[Token, ...]:
        return () if self._file is None else self._file.tokens()

    def _refuse_guessing(self, address: str) -> None:
        now = time.monotonic()
        recent = [at for at in self._failed.get(address, ()) if now - at < _WINDOW_SECONDS]
        if len(recent) >= _FAILURES:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too-many-failures",
                "too many wrong tokens came from this address",
                hint="wait a minute",
                headers={"Retry-After": str(int(_WINDOW_SECONDS))},
            )

    def _note_failure(self, address: str) -> None:
        now = time.monotonic()
        recent = [at for at in self._failed.pop(address, ()) if now - at < _WINDOW_SECONDS]
        self._failed[address] = [*recent, now][-_FAILURES:]
        while len(self._failed) > _CLIENTS:
            self._failed.popitem(last=False)
