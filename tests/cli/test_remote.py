"""Verbs by the REST API instead of the journal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfilter.ruleset.model import Backend
from tests.api.test_service import serving
from tests.cli.calling import bpfilter
from tests.rollout.network import Net, entered
from tests.rollout.test_stages import load


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


@pytest.mark.kernel
def test_the_api_tells_what_the_journal_tells(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with serving(net, tmp_path):
        url = f"unix://{tmp_path / 'api.sock'}"
        assert bpfilter("status", "--url", url).returncode == 1
        with entered(net.fw):
            state = ("--state", str(tmp_path / "state"))
            started = bpfilter("shadow", "--interface", "v1", *state)
        assert started.returncode == 0, started.stderr
        status = bpfilter("status", "--url", url)
        assert "stage shadow" in status.stdout, status.stderr
        report = bpfilter("report", "--url", url, "--format", "json")
        assert report.returncode == 0, report.stderr
        assert json.loads(report.stdout)["stage"] == "shadow"
        unknown = bpfilter("confirm", "x", "--url", url)
        assert unknown.returncode == 1 and "nothing waits" in unknown.stderr
        assert bpfilter("rollback", "--url", url).returncode == 0
        assert "rolled back" in bpfilter("history", "--url", url).stdout


def test_an_api_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    gone = bpfilter("status", "--url", f"unix://{tmp_path / 'none.sock'}")
    assert gone.returncode == 1 and "cannot be reached" in gone.stderr
    plain = bpfilter("status", "--url", "http://localhost")
    assert plain.returncode == 64 and "neither unix:// nor https://" in plain.stderr
    both = bpfilter("status", "--url", "unix:///x", "--state", str(tmp_path))
    assert both.returncode == 64
