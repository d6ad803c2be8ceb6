"""Prometheus rules and the dashboard ask only for metrics that the API exposes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpfilter.api.metrics import exposition

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = MONITORING / "bpfilter.rules.yml"
STATUS = {
    "running": True, "stage": "shadow", "in_force": True, "decided": 5, "punted": {"rule": 2},
    "confirm": {"id": "x", "seconds": 9.0}, "comparison": {"compared": 5, "mismatches": 1},
}  # fmt: skip


def exposed() -> set[str]:
    return set(re.findall(r"^(\w+?)(?:\{| )", exposition(STATUS, ["mismatch"]), re.MULTILINE))


def asked(text: str) -> set[str]:
    return set(re.findall(r"\bbpfilter_(?!hosts)\w+", text))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from [each] if name == "expr" else strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def test_rules_and_dashboard_ask_for_metrics_that_are_there() -> None:
    dashboard = json.loads((MONITORING / "bpfilter.dashboard.json").read_text())
    assert asked(RULES.read_text()) <= exposed()
    assert asked(" ".join(strings(dashboard))) <= exposed()
    assert len(list(strings(dashboard))) == len(dashboard["panels"])


def test_an_event_that_never_happened_is_a_zero_so_that_its_first_is_an_increase() -> None:
    text = exposition(STATUS, ["probe"])
    assert 'bpfilter_events_total{kind="mismatch"} 0.0' in text
    assert 'bpfilter_events_total{kind="probe"} 1.0' in text


def test_promtool_takes_the_rules_where_it_is_installed() -> None:
    promtool = shutil.which("promtool")
    words = [
        ("check", "rules", str(RULES)),
        ("test", "rules", str(MONITORING / "bpfilter.test.yml")),
    ]
    for each in words if promtool is not None else []:
        done = subprocess.run([str(promtool), *each], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
