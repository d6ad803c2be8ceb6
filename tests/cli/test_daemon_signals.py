"""Signals reach bpfilterd's loop, also while it is busy and whichever thread they are given to."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUSY = """
import os, signal
from bpfilter.cli.daemon import told
from bpfilter.daemon.signals import Signals
wait = told(Signals([signal.{name}]))
os.kill(os.getpid(), signal.{name})
sum(range(3_000_000))
print(wait(1.0, []), wait(0.0, []))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_that_comes_during_work_is_noticed_after_it(name: str) -> None:
    words = [sys.executable, "-c", BUSY.format(name=name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr
