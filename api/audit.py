"""The audit trail: who changed what by this API, in SQLite beside the journal.

It is a file of its own, since a journal goes with its deployment (`bpfilter teardown`), and who
took a deployment away must stay on record. The schema bears a number in `user_version`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfilter.api.identity import Caller
from bpfilter.errors import RolloutError

VERSION = 1
_KEPT = 10_000
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS mutation (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, caller TEXT NOT NULL,
    role TEXT NOT NULL, how TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL);
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change that was asked for; `at` is wall-clock seconds, `detail` what was asked."""

    id: int
    at: float
    caller: str
    role: str
    how: str
    what: str
    detail: Any


class Trail:
    """Written before the change is made: what cannot be recorded is not done."""

    def __init__(self, directory: Path) -> None:
        """Of the daemon that keeps its journal in `directory`; the file is a sibling of it."""
        self.path = directory.with_suffix(".audit.sqlite")

    def record(self, caller: Caller, what: str, detail: Any) -> None:
        """RolloutError if it cannot be written."""
        row = (time.time(), caller.name, caller.role.name.lower(), caller.how, what)
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute(
                    "INSERT INTO mutation (at, caller, role, how, what, detail)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, json.dumps(detail)),
                )
                database.execute(
                    "DELETE FROM mutation WHERE id <= (SELECT max(id) FROM mutation) - ?", (_KEPT,)
                )
        except (OSError, sqlite3.Error) as error:
            raise RolloutError(
                f"the audit trail {self.path} cannot be written: {error}",
                hint="nothing was changed; the command line works without the API",
            ) from None

    def mutations(self, after: int = 0) -> tuple[Mutation, ...]:
        """Those behind `after`, oldest first; RolloutError if they cannot be read."""
        if not self.path.exists():
            return ()
        try:
            with closing(self._open()) as database:
                rows = database.execute(
                    "SELECT id, at, caller, role, how, what, detail FROM mutation"
                    " WHERE id > ? ORDER BY id",
                    (after,),
                ).fetchall()
        except sqlite3.Error as error:
            raise RolloutError(f"the audit trail {self.path} cannot be read: {error}") from None
        return tuple(
            Mutation(number, at, caller, role, how, what, json.loads(detail))
            for number, at, caller, role, how, what, detail in rows
        )

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self.path, timeout=5)
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found < VERSION:
            database.executescript(_SCHEMA)
        return database
