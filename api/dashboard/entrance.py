"""Who is let in to the dashboard: a session's cookie, from a page of ours, under a name of ours.

A cookie is sent along whoever made the browser ask, so every request must name this server as its
Host, and every change must come from a page of this origin and carry its form's token. `/v1` knows
no cookies.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from fastapi import Request, Response

from bpfilter.api.access import Guard
from bpfilter.api.dashboard.sessions import INVITED, LASTS, Holder, Secrets, csrf_token
from bpfilter.api.identity import Caller, Role
from bpfilter.api.problems import ApiError

PREFIX_HEADER = "x-bpfilter-prefix"
"""Under which path the proxy of `bpfilter dashboard` shows us; heeded on the unix socket only."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # no-referrer would make browsers send `Origin: null` with our own forms
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_MOST_FIELDS = 50


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody with a session; `csrf` is what their forms must carry."""

    caller: Caller
    session: str
    csrf: str


class NotSignedIn(Exception):
    """No session, or one that is over."""


class Entrance:
    """The sessions of one server."""

    def __init__(self, guard: Guard, hosts: Collection[str] = ()) -> None:
        """`hosts`: DNS names that browsers may know this server by."""
        self._guard = guard
        self._hosts = {name.lower() for name in hosts} | {"localhost"}
        self._sessions, self._invitations = Secrets(LASTS), Secrets(INVITED)

    def invite(self, request: Request) -> str:
        """A word that opens a session for the process at the other end of the unix socket, once.

        ApiError 403 for who has no role, and over TCP.
        """
        peer = getattr(request.state, "peer", None)
        if peer is None:
            raise _refused("invitations are given on the unix socket only")
        if self._guard.caller(request).role < Role.READ:
            raise _refused("you have no role", "roles are given in [api.roles]")
        return self._invitations.new(Holder(uid=peer.uid))

    def enter(self, request: Request, invitation: str) -> str | None:
        """A session for an invitation, once, by who was invited; None if it is not good."""
        self.check_host(request)
        holder = self._invitations.take(invitation)
        if holder is None or self._caller(request, holder) is None:
            return None
        return self._sessions.new(holder)

    def sign_in(self, request: Request, token: str) -> str | None:
        """A session for a bearer token; None for a wrong one, ApiError 429 after too many."""
        self.check_origin(request)
        if getattr(request.state, "peer", None) is not None:
            return None
        if self._guard.by_token(request, token) is None:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        return self._sessions.new(Holder(token=digest))

    def visitor(self, request: Request) -> Visitor:
        """Who asks, with the role they have now. NotSignedIn; ApiError for a foreign Host."""
        self.check_host(request)
        session = request.cookies.get(_cookie_name(request), "")
        holder = self._sessions.holder(session)
        caller = None if holder is None else self._caller(request, holder)
        if caller is None or caller.role < Role.READ:
            raise NotSignedIn
        return Visitor(caller, session, csrf_token(session))

    def operator(self, request: Request, form: Mapping[str, str]) -> Visitor:
        """Who changes something: as `visitor`, and ApiError 403 unless the form is one of ours,
        sent from our own page, by somebody with the operate role.
        """
        visitor = self.changing(request, form)
        if visitor.caller.role < Role.OPERATE:
            name, role = visitor.caller.name, visitor.caller.role.name.lower()
            raise _refused(f"{name} has role {role}, this needs operate", "ask who gives the roles")
        return visitor

    def changing(self, request: Request, form: Mapping[str, str]) -> Visitor:
        """As `operator`, of any role: what changes only the visitor's own session."""
        self.check_origin(request)
        visitor = self.visitor(request)
        if not hmac.compare_digest(form.get("csrf", "").encode(), visitor.csrf.encode()):
            raise _refused("the form is not one of this session", "go back, reload, try again")
        return visitor

    def sign_out(self, visitor: Visitor) -> None:
        """The session is over."""
        self._sessions.end(visitor.session)

    def check_host(self, request: Request) -> None:
        """ApiError 421 unless Host is a literal address or a name of ours.

        A page under a DNS name of somebody else's that points here would else pass as our origin
        (DNS rebinding); nobody can point a literal address elsewhere.
        """
        try:
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        except ValueError:
            name = ""
        if name not in self._hosts and not _is_address(name):
            raise ApiError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "wrong-host",
                "the dashboard is not known by this name",
                hint="use its address, or name it in `api.tcp.hosts`",
            )

    def check_origin(self, request: Request) -> None:
        """ApiError 403 unless the browser says that a page of this very origin asks."""
        self.check_host(request)
        expected = f"{request.url.scheme}://{request.headers.get('host', '')}"
        fetched = request.headers.get("sec-fetch-site", "same-origin")
        if request.headers.get("origin") != expected or fetched != "same-origin":
            raise _refused("the request does not come from a page of the dashboard")

    def _caller(self, request: Request, holder: Holder) -> Caller | None:
        """Who that is now: roles and tokens may have changed since."""
        peer = getattr(request.state, "peer", None)
        if holder.token is not None:
            found = None if peer is not None else self._guard.by_digest(holder.token)
        elif peer is not None and peer.uid == holder.uid:
            found = self._guard.caller(request)
        else:
            found = None
        return None if found is None else Caller(found.name, found.role, f"dashboard, {found.how}")


def set_cookie(request: Request, response: Response, session: str) -> None:
    """The session's cookie: not for scripts, not for other sites, over TLS only for TLS."""
    response.set_cookie(
        _cookie_name(request),
        session,
        max_age=int(LASTS),
        path=_cookie_path(request),
        secure=_is_secure(request),
        httponly=True,
        samesite="strict",
    )


def drop_cookie(request: Request, response: Response) -> None:
    """The browser shall forget it."""
    response.delete_cookie(
        _cookie_name(request),
        path=_cookie_path(request),
        secure=_is_secure(request),
        httponly=True,
        samesite="strict",
    )


async def read_form(request: Request) -> Mapping[str, str]:
    """The fields of a form, the first of each name; ApiError 422 for what is none."""
    try:
        text = (await request.body()).decode("ascii")
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "validation", "the body is no form"
        ) from None
    return {name: values[0] for name, values in fields.items()}


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _cookie_name(request: Request) -> str:
    """With `__Host-` browsers themselves insist on Secure, path / and no Domain."""
    return "__Host-bpfilter" if _is_secure(request) else "bpfilter"


def _cookie_path(request: Request) -> str:
    if getattr(request.state, "peer", None) is None:
        return "/"
    return request.headers.get(PREFIX_HEADER) or "/"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _refused(detail: str, hint: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.FORBIDDEN, "forbidden", detail, hint=hint)
