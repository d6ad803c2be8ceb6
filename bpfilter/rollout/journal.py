"""The journal: what this network namespace's rollout did, in SQLite, so that others can take over.

Steps are written before they are done and marked when done; all of them are idempotent, and
everything can be undone without the journal (see `teardown`). It is also where an operator's
command meets the running daemon: a request is one row, and so is its answer.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from bpfilter.errors import RolloutError

FILE = "journal.sqlite"
STATE_ROOT = Path("/run/bpfilterd")
SERVICE = "service"
"""A fact that is not empty while the daemon outlives its deployments."""

VERSION = 2
"""Of the schema; version 1 had steps and facts only and bore no number."""

_KEPT = 1000
"""Steps, events and requests that are kept, each."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS step (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, sentence TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS request (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, verb TEXT NOT NULL, argument TEXT NOT NULL,
    answer TEXT, done INTEGER NOT NULL DEFAULT 0);
"""


class Stage(StrEnum):
    """How far the programs may go; any stage goes back to OFF by rollback."""

    OFF = "off"
    SHADOW = "shadow"
    CANARY = "canary"
    ENFORCE = "enforce"

    @property
    def decides(self) -> bool:
        """Whether programs decide packets in it."""
        return self in (Stage.CANARY, Stage.ENFORCE)

    def before(self, other: Stage) -> bool:
        """Whether this stage goes less far."""
        order = list(Stage)
        return order.index(self) < order.index(other)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a stage change; `at` is wall-clock seconds."""

    at: float
    name: str
    done: bool


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, for operators; `at` is wall-clock seconds.

    `number` grows and is never used again, also where older events are forgotten.
    """

    at: float
    kind: str
    sentence: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of an operator's command to the daemon."""

    number: int
    verb: str
    argument: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon made of a request."""

    done: bool
    sentence: str


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
    except GONE:  # there is none, or it is just being removed
        return None


def is_service(directory: Path) -> bool:
    """Whether the live daemon stays when nothing is deployed any more, ready for the next wish."""
    try:
        with Journal(directory, create=False) as journal:
            return journal.daemon() is not None and bool(journal.get(SERVICE))
    except GONE:
        return False


class JournalLost(RolloutError):
    """The journal was taken away from under a process that has it open."""


GONE = (sqlite3.OperationalError, JournalLost)
"""What opening or using a journal that is not there raises."""


class Journal:
    """Opened on a directory of its own; a context manager. Other processes may read and ask."""

    def __init__(self, directory: Path, *, create: bool = True) -> None:
        """Without `create`, sqlite3.OperationalError if there is no journal.

        RolloutError if another version of bpfilter wrote it in a way that this one does not read.
        """
        self.path = directory / FILE
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = f"{self.path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        self._undoing = False
        self._db = sqlite3.connect(place, timeout=5, isolation_level=None, uri=True)
        try:
            self._check_version(create)
        except BaseException:
            self._db.close()
            raise

    def _check_version(self, create: bool) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > VERSION:
            raise RolloutError(
                f"{self.path} is of version {found}, this bpfilter reads {VERSION}",
                hint="use the bpfilter that wrote it, or delete the file: teardown works without",
            )
        if create and found < VERSION:
            self._db.executescript(f"{_SCHEMA}PRAGMA user_version = {VERSION};")

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
        cursor = self._execute("INSERT INTO step (at, name) VALUES (?, ?)", (time.time(), name))
        yield
        self._execute("UPDATE step SET done = 1 WHERE id = ?", (cursor.lastrowid,))

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """What takes things away happens, whether it can be written down or not."""
        before, self._undoing = self._undoing, True
        try:
            yield
        finally:
            self._undoing = before

    def _execute(self, statement: str, row: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, row)
        except sqlite3.Error as error:
            if self._undoing:
                return self._db.cursor()
            raise JournalLost(
                f"the journal {self.path} cannot be used any more: {error}",
                hint="somebody removed it, or the disk is full; then deploy again",
            ) from None

    def steps(self) -> tuple[Step, ...]:
        """All steps, oldest first."""
        rows = self._execute("SELECT at, name, done FROM step ORDER BY id")
        return tuple(Step(at, name, bool(done)) for at, name, done in rows)

    def event(self, kind: str, sentence: str) -> None:
        """Record what operators should know."""
        row = (time.time(), kind, sentence)
        self._execute("INSERT INTO event (at, kind, sentence) VALUES (?, ?, ?)", row)

    def events(self) -> tuple[Event, ...]:
        """All events, oldest first."""
        rows = self._execute("SELECT at, kind, sentence, id FROM event ORDER BY id")
        return tuple(Event(*row) for row in rows)

    def ask(self, verb: str, argument: Mapping[str, Any]) -> int:
        """Ask the daemon for something; the number of the request."""
        row = (time.time(), verb, json.dumps(argument))
        found = self._execute("INSERT INTO request (at, verb, argument) VALUES (?, ?, ?)", row)
        return int(found.lastrowid or 0)

    def asked(self) -> tuple[Asked, ...]:
        """Requests without an answer, oldest first."""
        rows = self._execute(
            "SELECT id, verb, argument FROM request WHERE answer IS NULL ORDER BY id"
        )
        return tuple(Asked(number, verb, json.loads(text)) for number, verb, text in rows)

    def answer(self, number: int, answer: Answer) -> None:
        """Say what became of a request."""
        row = (answer.sentence, answer.done, number)
        self._execute("UPDATE request SET answer = ?, done = ? WHERE id = ?", row)

    def answered(self, number: int) -> Answer | None:
        """The answer to a request, None while there is none."""
        query = "SELECT done, answer FROM request WHERE id = ? AND answer IS NOT NULL"
        row = self._execute(query, (number,)).fetchone()
        return None if row is None else Answer(bool(row[0]), row[1])

    def set(self, name: str, value: str) -> None:
        self._execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def get(self, name: str) -> str | None:
        row = self._execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, name: str, document: Mapping[str, Any] | None) -> None:
        """Keep a JSON document, or forget it."""
        if document is None:
            self._execute("DELETE FROM fact WHERE name = ?", (name,))
        else:
            self.set(name, json.dumps(document))

    def document(self, name: str) -> Mapping[str, Any] | None:
        """The JSON document that was kept under a name."""
        text = self.get(name)
        found: Mapping[str, Any] | None = None if text is None else json.loads(text)
        return found

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
        """Record the calling process as the daemon, and forget what is old; once is enough."""
        if self.daemon() == os.getpid():
            return
        self.set("started", process_start(os.getpid()) or "")
        self.set("pid", str(os.getpid()))
        self.set(SERVICE, "")
        self._execute("UPDATE request SET answer = 'the daemon ended' WHERE answer IS NULL")
        for table in ("step", "event", "request"):
            self._execute(
                f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - {_KEPT}"
            )

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
