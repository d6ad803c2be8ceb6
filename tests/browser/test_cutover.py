"""A person with a browser takes a firewall from nothing to enforce and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.api.test_service import serving
from tests.browser.opened import apart, browsing, left_behind, proxied, spoil
from tests.rollout.network import Net

pytestmark = pytest.mark.kernel

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt;"
RULES = f"""*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:<b>x'&y;</b> - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m udp --dport 4001 -m comment --comment "{HOSTILE}" -j ACCEPT
-A INPUT -p udp -j <b>x'&y;</b>
-A <b>x'&y;</b> -p udp -m udp --dport 4002 -j ACCEPT
COMMIT
"""
GATES = "[deployment.gates]\nseconds = 1\npackets = 5\nunseen = 1.0\npunted = 1.0\n"


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        for family in Family:
            built.iptables(Backend.NFT, family).restore(RULES)
        yield built


def at(page: Page, stage: str) -> None:
    expect(page.locator(".stage.here")).to_have_text(stage, timeout=60_000)


def begin(page: Page) -> None:
    at(page, "off")
    page.get_by_label("Interfaces").fill("v1")
    page.get_by_role("button", name="Begin with shadow").click()
    at(page, "shadow")


def test_shadow_promote_confirm_and_roll_back(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, GATES) as client,
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net) as page,
    ):
        page.goto(address)
        begin(page)
        expect(page.get_by_text("iptables decides every packet")).to_be_visible()
        net.send(4001, 20)
        net.send(4002, 20)
        busiest = page.locator("#live-rules")
        expect(busiest).to_contain_text(HOSTILE)
        expect(busiest).to_contain_text("<b>x'&y;</b>")
        expect(page.locator("#live-mismatches")).to_contain_text("None")
        expect(page.locator("#live-coverage svg")).to_be_visible()
        expect(page.locator("#live-gates .bad")).to_have_count(0)
        page.get_by_role("link", name="The whole report").click()
        expect(page.get_by_role("heading", name="Shadow report")).to_be_visible()
        page.go_back()
        page.locator("#seconds-enforce").fill("600")
        page.locator("#share").focus()
        page.wait_for_timeout(2500)  # the gates change meanwhile, what was written stays
        page.get_by_role("button", name="Go on to enforce").click()
        at(page, "enforce")
        expect(page.get_by_role("timer")).to_contain_text("9 min")
        expect(page.get_by_role("button", name="Go on to")).to_have_count(0)
        page.get_by_role("button", name="Confirm stage enforce").click()
        expect(page.get_by_role("timer")).to_have_count(0)
        at(page, "enforce")
        assert client.get("/v1/deployment").json()["confirm"] is None
        page.get_by_role("button", name="Roll back to off now").click()
        at(page, "off")
        assert apart(lambda: left_behind(net)) == ()
        expect(page.locator("#live-history")).to_contain_text("confirmed as dashboard-")
        trail = client.get("/v1/audit").json()["mutations"]
        assert [(each["what"], each["caller"], each["how"][:9]) for each in trail] == [
            ("put deployment", "root", "dashboard"),
            ("put deployment", "root", "dashboard"),
            ("confirm", "root", "dashboard"),
            ("rollback", "root", "dashboard"),
        ]


def test_a_mismatch_is_shown_as_it_comes_and_closes_its_gate(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net) as page,
    ):
        page.goto(address)
        begin(page)
        apart(lambda: spoil(net))
        net.send(4001, 3)
        mismatches = page.locator("#live-mismatches")
        expect(mismatches).to_contain_text("judged unlike")
        expect(mismatches).to_contain_text("predicted DROP, was ACCEPT")
        expect(mismatches).to_contain_text("10.99.1.2")
        expect(mismatches).to_contain_text(HOSTILE)
        expect(page.locator("#live-gates tr", has_text="mismatches")).to_contain_text("closed")
        expect(page.get_by_text("Refused.")).to_be_visible()
        expect(page.get_by_role("button", name="Go on to")).to_have_count(0)
        page.get_by_role("button", name="Roll back to off now").click()
        at(page, "off")
