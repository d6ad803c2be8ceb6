"""Starting the daemon of a network namespace, and asking the running one, by its journal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfilter.errors import RolloutError
from bpfilter.rollout.journal import GONE, Answer, Journal, Stage
from bpfilter.rollout.wishes import ChangedMeanwhile

ANSWER_SECONDS = 30.0


def ask(
    directory: Path, verb: str, argument: Mapping[str, Any], seconds: float = ANSWER_SECONDS
) -> Answer:
    """Ask the running daemon; its answer.

    RolloutError if there is none, it refuses, or it is silent for so many seconds.
    """
    try:
        with Journal(directory, create=False) as journal:
            if journal.daemon() is None:
                raise _nobody()
            number = journal.ask(verb, argument)
            end = time.monotonic() + seconds
            while (answer := journal.answered(number)) is None:
                if journal.daemon() is None and verb == "rollback" and journal.stage is Stage.OFF:
                    return Answer(True, "off: the daemon ended meanwhile")
                if journal.daemon() is None or time.monotonic() > end:
                    raise RolloutError(
                        "bpfilterd did not answer", hint="`bpfilter status` says where it stands"
                    )
                time.sleep(0.02)
    except GONE:
        raise _nobody() from None
    if answer.sentence == ChangedMeanwhile.sentence:
        raise ChangedMeanwhile
    if not answer.done:
        raise RolloutError(answer.sentence, hint="`bpfilter status` says where it stands")
    return answer


def _nobody() -> RolloutError:
    return RolloutError(
        "no bpfilterd runs in this network namespace",
        hint="the stage was rolled back, or never began; `bpfilter deploy` starts it",
    )


def log_of(directory: Path) -> Path:
    """Where a daemon that was started here writes what it does."""
    return directory.with_suffix(".log")


def start_daemon(directory: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own, in this network namespace."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bpfilter.cli.daemon", *words, "--state", str(directory)]
    with log_of(directory).open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
