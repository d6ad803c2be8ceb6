"""The pages of the dashboard, from what is seen: Jinja2 with escaping always on, no inline script
or style, so that the strict Content-Security-Policy holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader

from bpfilter.api.dashboard.entrance import Visitor
from bpfilter.api.dashboard.looks import Seen
from bpfilter.api.dashboard.wishes import Wishes, next_stages, outlook, refused
from bpfilter.api.identity import Role
from bpfilter.api.problems import Problem
from bpfilter.report.page import environment as report_environment
from bpfilter.report.page import style_sheet
from bpfilter.report.rates import seen_by
from bpfilter.report.safe import shown
from bpfilter.report.shadow import PUNTED, rule_name

SECTIONS = ("stage", "pending", "left", "rates", "mismatches", "gates", "promote", "rules",
            "coverage", "history")  # fmt: skip
STATIC: Mapping[str, str] = {
    "dashboard.js": "text/javascript; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
}
_SILENT_SECONDS = 5.0
"""A daemon says how it is every second; longer than that it is busy, or hangs."""
_TOP, _CAUSES, _SAMPLES, _EVENTS = 15, 8, 12, 30
DONE: Mapping[str, str] = {
    "promote": "The daemon was asked to go on; the gates say when it does.",
    "confirm": "Confirmed: the stage stays.",
    "rollback": "Rolled back: iptables decides alone.",
}


def dashboard_page(seen: Seen, visitor: Visitor, defaults: Wishes, done: str = "") -> str:
    """The whole page; `done`: what the visitor just did, a key of DONE."""
    values = _values(seen, visitor, defaults)
    page = _environment().get_template("dashboard.html.j2")
    return page.render(sections=_sections(values), done=DONE.get(done), **values)


def live_sections(seen: Seen, visitor: Visitor, defaults: Wishes) -> Mapping[str, str]:
    """The parts of the page that change, by name."""
    return _sections(_values(seen, visitor, defaults))


def sign_in_page(*, local: bool, wrong: bool = False) -> str:
    """`local`: on the unix socket, where no token is taken."""
    return _environment().get_template("sign-in.html.j2").render(local=local, wrong=wrong)


def problem_page(problem: Problem) -> str:
    """A refusal."""
    return (
        _environment().get_template("problem.html.j2").render(problem=shown(problem.model_dump()))
    )


def static_file(name: str) -> str:
    """One of STATIC; the style is that of the reports, and what the dashboard adds."""
    text = (files(__package__) / "static" / name).read_text(encoding="utf-8")
    return style_sheet() + text if name == "dashboard.css" else text


def _sections(values: Mapping[str, Any]) -> Mapping[str, str]:
    found = {}
    for name in SECTIONS:
        template = _environment().get_template(f"live-{name}.html.j2")
        found[name] = template.render(**values).strip()
    return found


def _values(seen: Seen, visitor: Visitor, defaults: Wishes) -> dict[str, Any]:
    now, status, report = time.time(), shown(seen.status), seen.report
    pending = status.get("confirm")
    late = max(now - status.get("at", now), 0.0)
    stages = next_stages(status)
    gates = status.get("gates") or []
    if not gates and stages and status["stage"] != "off":
        gates = outlook(seen.status, defaults.gates, now)
    return {
        "status": status,
        "visitor": visitor,
        "may": visitor.caller.role >= Role.OPERATE,
        "role": visitor.caller.role.name.lower(),
        "pending": pending,
        "silent": int(late) if status["running"] and late > _SILENT_SECONDS else None,
        "left": None if pending is None else max(pending["seconds"] - late, 0.0),
        "next_stages": stages,
        "gates": gates,
        "refused": refused(gates, status),
        "defaults": defaults,
        "revision": seen.revision,
        "report": report,
        "rates": seen.rates,
        "punted": _punted(status),
        "top": () if report is None else _top(report, seen.rates["rules"]),
        "samples": () if report is None else _samples(report),
        "events": [shown(event) for event in seen.events[: -_EVENTS - 1 : -1]],
        "now": now,
    }


def _punted(status: Mapping[str, Any]) -> Sequence[tuple[str, int]]:
    counted = status.get("punted") or {}
    found = sorted(((n, reason) for reason, n in counted.items() if n), reverse=True)
    return [(PUNTED.get(reason, reason), n) for n, reason in found[:_CAUSES]]


def _top(report: Mapping[str, Any], per_second: Mapping[str, float]) -> Sequence[dict[str, Any]]:
    busy = [
        {**rule, "rate": per_second.get(rule_name(rule), 0.0), "total": seen_by(rule)}
        for rule in report["coverage"]["rules"]
        if seen_by(rule) or rule["mismatches"]
    ]
    ranked = sorted(busy, key=lambda rule: (-rule["mismatches"], -rule["rate"], -rule["total"]))
    return [shown(rule) for rule in ranked[:_TOP]]


def _samples(report: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    compared = report["comparison"]
    return () if compared is None else compared["samples"][: -_SAMPLES - 1 : -1]


@cache
def _environment() -> Environment:
    made = report_environment().overlay(loader=PackageLoader("bpfilter.api.dashboard"))
    made.filters["rate"] = lambda value: "…" if value is None else f"{value:,.0f}"
    return made
