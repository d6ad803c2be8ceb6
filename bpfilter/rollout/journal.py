"""The journal: what this network namespace's rollout did, in SQLite, so that others can take over.

Steps are written before they are done and marked when done; all of them are idempotent, and
everything can be undone without the journal (see `teardown`). It is also where an operator's
command meets the running daemon: a confirmation is one row.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

FILE = "journal.sqlite"
STATE_ROOT = Path("/run/bpfilterd")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS step (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Stage(StrEnum):
    """How far the programs may go; any stage goes back to OFF by rollback."""

    OFF = "off"
    SHADOW = "shadow"
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a stage change; `at` is wall-clock seconds."""

    at: float
    name: str
    done: bool


def namespace_id() -> str:
    """A name for the current network namespace: `net-<inode>`."""
    return f"net-{Path('/proc/thread-self/ns/net').stat().st_ino}"


def state_directory() -> Path:
    """Where the daemon of the current network namespace keeps its journal."""
    return STATE_ROOT / namespace_id()


def running(directory: Path) -> tuple[int, Stage] | None:
    """The live daemon that keeps its journal there, and its stage; changes nothing."""
    try:
        with Journal(directory, create=False) as journal:
            pid = journal.daemon()
            return None if pid is None else (pid, journal.stage)
    except sqlite3.OperationalError:  # there is none, or it is just being removed
        return None


class Journal:
    """Opened on a directory of its own; a context manager. Other processes may read and confirm."""

    def __init__(self, directory: Path, *, create: bool = True) -> None:
        """Without `create`, sqlite3.OperationalError if there is no journal."""
        self.path = directory / FILE
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = f"{self.path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        self._db = sqlite3.connect(place, timeout=5, isolation_level=None, uri=True)
        if create:
            self._db.executescript(_SCHEMA)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record a step, do it, and record that it was done; on an error it stays open."""
        cursor = self._db.execute("INSERT INTO step (at, name) VALUES (?, ?)", (time.time(), name))
        yield
        self._db.execute("UPDATE step SET done = 1 WHERE id = ?", (cursor.lastrowid,))

    def steps(self) -> tuple[Step, ...]:
        """All steps, oldest first."""
        rows = self._db.execute("SELECT at, name, done FROM step ORDER BY id")
        return tuple(Step(at, name, bool(done)) for at, name, done in rows)

    def set(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def get(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def stage(self) -> Stage:
        return Stage(self.get("stage") or Stage.OFF)

    def daemon(self) -> int | None:
        """The process id of the daemon that lives and owns this journal, or None."""
        pid, started = self.get("pid"), self.get("started")
        if pid is None or started is None or process_start(int(pid)) != started:
            return None
        return int(pid)

    def own(self) -> None:
        """Record the calling process as the daemon."""
        self.set("started", process_start(os.getpid()) or "")
        self.set("pid", str(os.getpid()))

    def remove(self) -> None:
        """Close the journal and delete it with its directory."""
        self._db.close()
        for path in self.path.parent.glob(self.path.name + "*"):
            path.unlink(missing_ok=True)
        self.path.parent.rmdir()


def process_start(pid: int) -> str | None:
    """When a live process started, in clock ticks: tells it from a later one with its id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
