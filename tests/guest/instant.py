"""A pytest plugin that shows a failure when it happens: a guest may not get to its end."""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.nodeid}\n{report.longreprtext}", flush=True)
