"""Who gets in to the dashboard over TLS, what they may press, and from where."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bpfilter.api.tokens import revoke_token
from bpfilter.ruleset.model import Backend
from tests.api.test_service import serving
from tests.api.test_tls import OTHERS, PORT, RULES, SECRET, authority, configured
from tests.rollout.network import FW4, Net, entered

pytestmark = pytest.mark.kernel
ORIGIN = f"https://{FW4}:{PORT}"
OPERATORS = "the operator's token"
COOKIE = "__Host-bpfilter"


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        built.iptables(Backend.NFT).restore(RULES)
        yield built


def prepared(directory: Path) -> str:
    """The configuration, with tokens for a reader and an operator."""
    authority(directory)
    text = configured(directory, tokens=True)
    with (directory / "tokens").open("a") as file:
        file.write(f"operator operate {hashlib.sha256(OPERATORS.encode()).hexdigest()}\n")
    (directory / "tokens").chmod(0o600)
    return text


@contextmanager
def browser(directory: Path) -> Iterator[httpx.Client]:
    """What keeps cookies and says where its forms come from."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    headers = {"Origin": ORIGIN}
    with httpx.Client(verify=context, base_url=ORIGIN, headers=headers, timeout=60) as client:
        yield client


def sign_in(client: httpx.Client, token: str) -> httpx.Response:
    return client.post("/dashboard/sign-in", data={"token": token})


def csrf(client: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/dashboard/").text)
    assert found is not None
    return found[1]


def test_nothing_is_shown_to_who_is_not_signed_in(net: Net, tmp_path: Path) -> None:
    with serving(net, tmp_path, prepared(tmp_path)), entered(net.fw), browser(tmp_path) as client:
        answer = client.get("/dashboard/")
        assert (answer.status_code, answer.headers["Location"]) == (303, "sign-in")
        assert client.get("/dashboard/report").headers["Location"] == "sign-in"
        assert client.get("/dashboard/live").status_code == 204
        for verb in ("promote", "confirm", "rollback"):
            assert client.post(f"/dashboard/{verb}").headers["Location"] == "sign-in"
        assert client.post("/dashboard/invitations").status_code == 403
        assert client.get("/dashboard/enter?invitation=guess").status_code == 403
        wrong = sign_in(client, OTHERS)
        assert wrong.status_code == 401 and "Set-Cookie" not in wrong.headers
        assert {sign_in(client, OTHERS).status_code for _ in range(9)} == {401}
        assert sign_in(client, OTHERS).status_code == 429, "guessing is slowed down"
        assert sign_in(client, SECRET).status_code == 429


def test_a_session_ends_by_signing_out_and_with_its_token(net: Net, tmp_path: Path) -> None:
    with serving(net, tmp_path, prepared(tmp_path)), entered(net.fw), browser(tmp_path) as client:
        answer = sign_in(client, SECRET)
        assert (answer.status_code, answer.headers["Location"]) == (303, "./")
        cookie = answer.headers["Set-Cookie"]
        for part in (COOKIE, "HttpOnly", "SameSite=strict", "Secure", "Path=/;"):
            assert part in f"{cookie};", cookie
        assert SECRET not in cookie
        page = client.get("/dashboard/")
        assert page.status_code == 200 and "reader, read" in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "Begin with shadow" not in page.text
        assert client.get("/v1/deployment").status_code == 401, "cookies are nothing to /v1"
        kept = client.cookies[COOKIE]
        out = client.post("/dashboard/sign-out", data={"csrf": csrf(client)})
        assert out.headers["Location"] == "sign-in" and COOKIE not in client.cookies
        client.cookies.set(COOKIE, kept, domain=FW4)
        assert client.get("/dashboard/").status_code == 303
        client.cookies.clear()
        assert sign_in(client, SECRET).status_code == 303
        assert client.get("/dashboard/").status_code == 200
        revoke_token(tmp_path / "tokens", "reader")
        assert client.get("/dashboard/").status_code == 303


def test_buttons_need_the_role_the_page_and_its_form(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, prepared(tmp_path)) as local,
        entered(net.fw),
        browser(tmp_path) as client,
    ):
        sign_in(client, SECRET)
        assert client.post("/dashboard/rollback", data={"csrf": csrf(client)}).status_code == 403
        client.cookies.clear()
        sign_in(client, OPERATORS)
        form = {"data": {"csrf": csrf(client)}}

        def press(**more: object) -> int:
            return client.post("/dashboard/rollback", **{**form, **more}).status_code

        assert press(data={}) == 403
        assert press(data={"csrf": "0" * 64}) == 403
        for origin in ("https://elsewhere.test", "null", f"http://{FW4}:{PORT}"):
            assert press(headers={"Origin": origin}) == 403
        assert press(headers={"Sec-Fetch-Site": "same-site"}) == 403
        assert press(headers={"Host": "elsewhere.test"}) == 421
        assert local.get("/v1/audit").json()["mutations"] == []
        assert press() == 303
        stale = {"csrf": csrf(client), "stage": "shadow", "interfaces": "v1", "revision": "old"}
        late = client.post("/dashboard/promote", data=stale)
        assert late.status_code == 412 and "another one" in late.text
        for bad in ({"stage": "off"}, {"stage": "canary", "share": "x"}, {"stage": "<b>"}):
            answer = client.post("/dashboard/promote", data={**stale, **bad})
            assert answer.status_code == 422 and "<b>" not in answer.text
        (made,) = local.get("/v1/audit").json()["mutations"]
        assert (made["what"], made["caller"]) == ("rollback", "operator")
        assert made["how"] == "dashboard, bearer token"


def test_on_the_unix_socket_an_invitation_opens_one_session(net: Net, tmp_path: Path) -> None:
    with serving(net, tmp_path) as client:
        client.base_url = "http://localhost"
        client.headers["Origin"] = "http://localhost"
        assert sign_in(client, SECRET).status_code == 401
        invitation = client.post("/dashboard/invitations").json()["invitation"]
        enter = f"/dashboard/enter?invitation={invitation}"
        assert client.get(enter, headers={"Host": "elsewhere.test"}).status_code == 421
        prefix = {"X-Bpfilter-Prefix": "/hidden"}
        first = client.get(enter, headers=prefix)
        assert first.status_code == 303 and "Path=/hidden;" in first.headers["Set-Cookie"]
        assert client.get(enter).status_code == 403, "once"
