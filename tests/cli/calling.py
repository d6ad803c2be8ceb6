"""The `bpfilter` command as a process, in the calling thread's network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = "import sys; from bpfilter.cli.main import main; sys.argv[0] = 'bpfilter'; main()"
ROOT = Path(__file__).parents[2]


def bpfilter(*words: str, columns: int = 100) -> subprocess.CompletedProcess[str]:
    """Its output, errors and exit code."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)},
    )
