"""Other ways to the dashboard: without scripts, by keyboard, on small or dark screens, by token."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.api.test_dashboard import OPERATORS, ORIGIN, prepared
from tests.api.test_service import serving
from tests.api.test_tls import OTHERS, SECRET
from tests.browser.opened import browsing, proxied
from tests.browser.test_cutover import GATES, RULES, at, begin
from tests.rollout.network import Net, call

pytestmark = pytest.mark.kernel

_MOST_TABS = 60
_CONTRAST = """
() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const found = numbers(getComputedStyle(each).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !each.checkVisibility() || each.closest("svg, .skip")) continue;
    const [a, b] = [light(numbers(getComputedStyle(each).color)), light(ground(each))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([each.tagName, each.className, each.textContent, ratio]);
  }
  return poor;
}
"""
"""What is harder to read than WCAG 2.1's 4.5 : 1."""


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        for family in Family:
            built.iptables(Backend.NFT, family).restore(RULES)
        yield built


def reloaded(page: Page, stage: str) -> None:
    """Who has no script reloads until the stage is there."""
    for _ in range(120):
        if page.locator(".stage.here").inner_text().split()[0] == stage:
            return
        page.wait_for_timeout(250)
        page.get_by_role("link", name="Reload").click()
    raise AssertionError(f"stage {stage} does not come: {page.locator('main').inner_text()}")


def test_everything_works_without_scripts(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net, java_script_enabled=False) as page,
    ):
        page.goto(address)
        page.get_by_label("Interfaces").fill("v1")
        page.get_by_role("button", name="Begin with shadow").click()
        reloaded(page, "shadow")
        net.send(4001, 20)
        for _ in range(60):
            page.get_by_role("link", name="Reload").click()
            if not page.locator("#live-gates .bad").count():
                break
            page.wait_for_timeout(250)
        page.locator("#seconds-enforce").fill("600")
        page.get_by_role("button", name="Go on to enforce").click()
        reloaded(page, "enforce")
        expect(page.get_by_role("timer")).to_contain_text("9 min")
        page.get_by_role("button", name="Confirm stage enforce").click()
        expect(page.locator("#done")).to_be_visible()
        expect(page.get_by_role("timer")).to_have_count(0)
        page.get_by_role("button", name="Roll back to off now").click()
        reloaded(page, "off")


def press_to(page: Page, identity: str) -> None:
    """Go on by the tab key, seeing where one is, until an element has the focus."""
    for _ in range(_MOST_TABS):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "() => { const each = document.activeElement, style = getComputedStyle(each);"
            " return [each.id, each === document.body || style.outlineStyle !== 'none'"
            " && parseFloat(style.outlineWidth) > 0]; }"
        )
        assert seen[1], f"the focus cannot be seen at {seen[0]!r}"
        if seen[0] == identity:
            return
    raise AssertionError(f"{identity} is not reached by the tab key")


def test_the_keyboard_is_enough(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net) as page,
    ):
        page.goto(address)
        at(page, "off")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        assert page.url.endswith("#content")
        page.get_by_label("Interfaces").focus()
        page.keyboard.press("Control+a")
        page.keyboard.type("v1")
        press_to(page, "promote-shadow")
        page.keyboard.press("Enter")
        at(page, "shadow")
        net.send(4001, 20)
        expect(page.locator("#live-gates .bad")).to_have_count(0)
        press_to(page, "seconds-enforce")
        page.keyboard.press("Control+a")
        page.keyboard.type("600")
        page.keyboard.press("Enter")
        at(page, "enforce")
        press_to(page, "confirm")
        page.wait_for_timeout(2500)  # parts are replaced meanwhile, the focus stays
        expect(page.locator("#confirm")).to_be_focused()
        page.keyboard.press("Space")
        expect(page.get_by_role("timer")).to_have_count(0)
        press_to(page, "rollback")
        page.keyboard.press("Enter")
        at(page, "off")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_small_screen(net: Net, tmp_path: Path, scheme: str) -> None:
    small = {"width": 360, "height": 740}
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net, viewport=small, color_scheme=scheme) as page,
    ):
        page.goto(address)
        begin(page)
        net.send(4001, 20)
        expect(page.locator("#live-rules")).to_contain_text("4001")
        page.locator("#seconds-enforce").fill("600")
        page.get_by_role("button", name="Go on to enforce").click()
        at(page, "enforce")
        assert page.evaluate(_CONTRAST) == []
        root = "document.documentElement"
        assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), "nothing hangs out"
        headings = page.locator("h1,h2,h3").all()
        levels = [int(each.evaluate("e => e.tagName[1]")) for each in headings]
        assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_names_of_interfaces_are_text(net: Net, tmp_path: Path) -> None:
    name = "<i>x'&\"</i>"[:12].replace("/", "!")
    call("ip", "-n", net.fw, "link", "add", name, "type", "veth", "peer", "name", "other")
    call("ip", "-n", net.fw, "link", "set", name, "up")
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net) as page,
    ):
        page.goto(address)
        page.get_by_label("Interfaces").fill(f"v1 {name}")
        page.get_by_role("button", name="Begin with shadow").click()
        at(page, "shadow")
        expect(page.locator("#live-stage")).to_contain_text(f"at v1, {name}")
        assert page.locator("main i").count() == 0
        page.get_by_role("button", name="Roll back to off now").click()
        at(page, "off")


def test_a_token_signs_in_as_far_as_its_role_goes(net: Net, tmp_path: Path) -> None:
    allowed = "*filter\n-I INPUT -p tcp -m tcp --dport 8443 -j ACCEPT\nCOMMIT\n"
    net.iptables(Backend.NFT).restore(allowed, "--noflush")
    with (
        serving(net, tmp_path, prepared(tmp_path) + GATES),
        browsing(net, "401", ignore_https_errors=True) as page,
    ):
        page.goto(f"{ORIGIN}/dashboard/")
        expect(page).to_have_url(f"{ORIGIN}/dashboard/sign-in")
        page.get_by_label("Token").fill(OTHERS)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("not known")
        expect(page.get_by_label("Token")).to_have_value("")
        page.get_by_label("Token").fill(SECRET)
        page.keyboard.press("Enter")
        at(page, "off")
        expect(page.get_by_text("you may look, not operate")).to_be_visible()
        expect(page.get_by_role("button")).to_have_text(["Sign out"])
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type(OPERATORS)
        page.keyboard.press("Enter")
        begin(page)
        page.get_by_role("button", name="Roll back to off now").click()
        at(page, "off")


def test_an_invitation_opens_one_session(net: Net, tmp_path: Path) -> None:
    with (
        serving(net, tmp_path, GATES),
        proxied(net, tmp_path / "api.sock") as address,
        browsing(net, "403") as page,
    ):
        page.goto(address)
        at(page, "off")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_text("bpfilter dashboard")).to_be_visible()
        page.goto(address)
        expect(page.get_by_role("alert")).to_contain_text("used already")
