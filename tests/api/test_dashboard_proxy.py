"""What the proxy of `bpfilter dashboard` lets through, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bpfilter.api.dashboard.proxy import PATHS, listener
from bpfilter.api.dashboard.routes import PATH, routed
from bpfilter.api.dashboard.sessions import Holder, Secrets, csrf_token
from tests.api.test_service import serving
from tests.browser.opened import proxied
from tests.cli.calling import bpfilter
from tests.rollout.network import Net, entered


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


def test_all_pages_pass_the_proxy_but_the_one_that_invites() -> None:
    left = {("POST", f"{PATH}/invitations"), ("GET", PATH), ("POST", f"{PATH}/sign-in")}
    passed = {(method, f"{PATH}/{rest}") for rest, method in PATHS.items()}
    passed = {(m, "/dashboard/static/{name}" if "static" in p else p) for m, p in passed}
    assert passed == routed() - left


@pytest.mark.kernel
def test_only_who_knows_the_address_gets_further_and_only_to_the_dashboard(
    net: Net, tmp_path: Path
) -> None:
    with serving(net, tmp_path), proxied(net, tmp_path / "api.sock") as address, entered(net.peer):
        url = httpx.URL(address)
        start = f"http://{url.host}:{url.port}"
        below = address.partition("/dashboard/")[0]
        with httpx.Client() as client:
            for path in ("/", "/v1/deployment", "/dashboard/", "/guess/dashboard/"):
                assert client.get(start + path).status_code == 404
            for path in ("/v1/deployment", "/dashboard/invitations", "/dashboard/../v1/host"):
                asked = client.build_request("GET", "http://x")
                asked.url = httpx.URL(start).copy_with(
                    raw_path=f"{httpx.URL(below).path}{path}".encode()
                )
                assert client.send(asked).status_code == 404, path
            assert client.post(f"{below}/dashboard/invitations").status_code == 404
            assert client.get(f"{below}/dashboard/").headers["Location"] == "sign-in"
            other = {"Host": "elsewhere.test"}
            assert client.get(address, headers=other).status_code == 404
            assert client.get(address).headers["Location"] == "./"
            page = client.get(f"{below}/dashboard/")
            assert page.status_code == 200 and "root, admin" in page.text
            large = client.post(f"{below}/dashboard/rollback", content=b"x" * 70_000)
            assert large.status_code == 413
        with httpx.Client() as somebody:
            assert somebody.get(address).status_code == 403, "the address works once"


def test_without_an_api_the_command_says_what_is_missing(tmp_path: Path) -> None:
    done = bpfilter("dashboard", "--socket", str(tmp_path / "none"))
    assert done.returncode == 1 and "no API answers" in done.stderr
    with listener() as taken:
        port = str(taken.getsockname()[1])
        done = bpfilter("dashboard", "--port", port, "--socket", str(tmp_path / "none"))
    assert done.returncode == 1 and "cannot listen" in done.stderr


def test_secrets_are_over_in_time_and_the_oldest_go_first() -> None:
    now = [0.0]
    kept = Secrets(10.0, clock=lambda: now[0])
    first = kept.new(Holder(uid=1))
    assert kept.holder(first) == Holder(uid=1) and kept.holder("guess") is None
    now[0] = 10.0
    assert kept.holder(first) is None
    names = [kept.new(Holder(uid=number)) for number in range(300)]
    assert kept.holder(names[0]) is None and kept.holder(names[-1]) == Holder(uid=299)
    assert kept.take(names[-1]) == Holder(uid=299) and kept.take(names[-1]) is None
    assert csrf_token(names[1]) == csrf_token(names[1]) != csrf_token(names[2])
