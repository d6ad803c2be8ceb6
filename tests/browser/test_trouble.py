"""What somebody who watches a cutover sees when something goes wrong beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from bpfilter.rollout.journal import running
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.api.test_dashboard import OPERATORS, ORIGIN, prepared
from tests.api.test_service import serving
from tests.browser.opened import browsing, proxied
from tests.browser.test_cutover import GATES, RULES, at, begin
from tests.rollout.network import Net

pytestmark = pytest.mark.kernel

WAYS_IN = "*filter\n-I INPUT -p tcp -m tcp --dport 8443 -j ACCEPT\nCOMMIT\n"


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        for family in Family:
            built.iptables(Backend.NFT, family).restore(RULES)
        built.iptables(Backend.NFT).restore(WAYS_IN, "--noflush")
        yield built


def sign_in(page: Page) -> None:
    page.goto(f"{ORIGIN}/dashboard/")
    page.get_by_label("Token").fill(OPERATORS)
    page.keyboard.press("Enter")
    expect(page.locator(".stage.here")).to_contain_text("off")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("how", ["session gone", "token revoked"])
def test_a_session_that_ended_leads_to_the_sign_in_and_changes_nothing(
    net: Net, tmp_path: Path, how: str, scripts: bool
) -> None:
    with (
        serving(net, tmp_path, prepared(tmp_path) + GATES) as client,
        browsing(net, "401", ignore_https_errors=True, java_script_enabled=scripts) as page,
    ):
        sign_in(page)
        if how == "session gone":
            page.context.clear_cookies()
        else:
            tokens = tmp_path / "tokens"
            lines = tokens.read_text().splitlines(keepends=True)
            tokens.write_text("".join(line for line in lines if not line.startswith("operator ")))
        if not scripts or how == "session gone":
            page.get_by_role("button", name="Begin with shadow").click()
        expect(page).to_have_url(f"{ORIGIN}/dashboard/sign-in")
        expect(page.get_by_label("Token")).to_be_visible()
        assert client.get("/v1/deployment").json()["stage"] == "off"


def test_many_wrong_tokens_are_told_to_wait(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, prepared(tmp_path) + GATES),
        browsing(net, "4", ignore_https_errors=True) as page,
    ):
        page.goto(f"{ORIGIN}/dashboard/")
        for _ in range(30):
            page.get_by_label("Token").fill("no such token")
            page.keyboard.press("Enter")
            alert = page.get_by_role("alert")
            expect(alert).to_be_visible()
            if "too many" in alert.inner_text():
                break
        expect(page.get_by_text("wait a minute")).to_be_visible()
        page.get_by_role("link", name="To the dashboard").click()
        page.get_by_label("Token").fill(OPERATORS)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("too many wrong tokens")


def test_a_confirmation_that_nobody_gave_is_seen_to_end_the_stage(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net) as page,
    ):
        page.goto(address)
        begin(page)
        net.send(4001, 20)
        expect(page.locator("#live-gates .bad")).to_have_count(0)
        page.locator("#seconds-enforce").fill("4")
        page.get_by_role("button", name="Go on to enforce").click()
        at(page, "enforce")
        expect(page.get_by_role("timer")).to_be_visible()
        expect(page.locator("#live-history")).to_contain_text("not confirmed")
        expect(page.get_by_role("timer")).to_have_count(0)
        expect(page.locator(".stage.here")).not_to_contain_text("enforce")


def test_a_service_that_stops_is_said_to_be_gone_and_seen_again_when_it_is_back(
    net: Net, tmp_path: Path
) -> None:
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net, "50") as page,
    ):
        page.goto(address)
        begin(page)
        found = running(tmp_path / "state")
        assert found is not None
        os.kill(found[0], signal.SIGSTOP)
        try:
            said = page.locator("#live-stage")
            expect(said).to_contain_text("has not said anything", timeout=20_000)
        finally:
            os.kill(found[0], signal.SIGCONT)
        expect(page.locator("#live-stage")).not_to_contain_text("has not said anything")
        at(page, "shadow")
