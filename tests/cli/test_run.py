"""Errors reach the shell as sentences and as the exit codes that scripts rely on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BPFILTER = Path(sys.executable).parent / "bpfilter"
BROKEN = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport htpp -j ACCEPT\nCOMMIT\n"


def bpfilter(*words: str, data: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BPFILTER, *words], input=data, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("words", [(), ("plan", "--nonsense"), ("bogus",), ("plan", "--format")])
def test_a_wrong_command_line_exits_64_without_a_traceback(words: tuple[str, ...]) -> None:
    done = bpfilter(*words)
    assert done.returncode == 64
    assert re.search("Usage:|Error:", done.stderr + done.stdout)
    assert "Traceback" not in done.stderr


def test_a_refused_ruleset_exits_2_and_names_line_and_word() -> None:
    done = bpfilter("plan", "--ruleset", "-", data=BROKEN)
    assert done.returncode == 2
    assert "-:3:" in done.stderr
    assert "'htpp'" in done.stderr


def test_a_reader_that_goes_away_gives_no_traceback() -> None:
    command = f"set -o pipefail; {BPFILTER} plan --ruleset docs/example.rules --format json | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_version_is_the_packages() -> None:
    done = bpfilter("--version")
    assert done.stdout == "bpfilter 0.1.0\n"
    assert done.returncode == 0
