"""The daemon's log: lines for people, JSON, or journald's own fields with stable MESSAGE_IDs.

Native protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. `journalctl MESSAGE_ID=…` finds one
kind of event on a fleet; the numbers never change (docs/service.md has the table, and
systemd/bpfilter.catalog what `journalctl -x` says of them).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

import structlog

from bpfilter.rollout.trouble import Cause
from bpfilter.settings import Daemon

JOURNALD = Path("/run/systemd/journal/socket")
_IDENTIFIER = "bpfilterd"
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}

STAGE = "a073e2abdb4c41ed9bc951bac61618e9"
MISMATCH = "aae229c5c6264634adad05f8204e1b77"
ROLLBACK = "38c83f98e4d34a8d918b040fb8feb310"
DRIFT = "e78ad08d57fd47f2b74d36eb7f8a260f"
FOLLOWED = "aca451dbed294947a8fe2b13e0906106"
ADOPTED = "6db2986c7c494c058aebcbf3537367a4"
FAILED = "9416a86186be4eb3985522e591f982c4"
AUDIT = "26d6cdb108ba41cc80da961ce5b57728"

MESSAGE_IDS: Mapping[str, str] = {
    "stage": STAGE,
    "confirmed": STAGE,
    Cause.MISMATCH: MISMATCH,
    Cause.LOST: ROLLBACK,
    Cause.PROBE: ROLLBACK,
    Cause.UNCONFIRMED: ROLLBACK,
    Cause.CANCELLED: ROLLBACK,
    Cause.STOPPED: ROLLBACK,
    Cause.RULESET: DRIFT,
    Cause.MARKS: DRIFT,
    Cause.DISPATCH: DRIFT,
    Cause.HOST: DRIFT,
    Cause.LINKS: DRIFT,
    "followed": FOLLOWED,
    "adopted": ADOPTED,
    "undone": ADOPTED,
    "failed": FAILED,
    "audit": AUDIT,
}
"""The kind of an event → its MESSAGE_ID."""

_LOUD = frozenset({"failed", Cause.MISMATCH, Cause.LOST, Cause.PROBE, Cause.UNCONFIRMED})


def configure(settings: Daemon, journald: Path = JOURNALD) -> Any:
    """Make structlog write as the configuration says; the daemon's logger."""
    form = _form(settings.log_format, journald)
    shared: list[Any] = [structlog.processors.add_log_level, _loud]
    factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    if form == "journal":
        factory = _JournaldFactory(journald)
    elif form == "json":
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        shared.append(structlog.processors.JSONRenderer())
    else:
        shared.append(structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False))
        shared.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger(_IDENTIFIER)


def _form(asked: str, journald: Path) -> Literal["journal", "json", "console"]:
    if asked == "journal" or (asked == "auto" and _stderr_is_journald() and journald.exists()):
        return "journal"
    return "json" if asked == "json" else "console"


def _stderr_is_journald() -> bool:
    """As sd_journal_stream_fd(3) says: JOURNAL_STREAM names the device and inode of our stderr."""
    found = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _loud(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if event.get("kind") in _LOUD and event["level"] == "info":
        event["level"] = "warning"
    return event


class _JournaldFactory:
    def __init__(self, place: Path) -> None:
        self._place = place

    def __call__(self, *_names: str) -> Journald:
        return Journald(self._place)


class Journald:
    """Sends each event as one datagram of fields; what cannot be sent goes to standard error."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)

    def msg(self, event: str = "", **fields: Any) -> None:
        level, kind = fields.pop("level", "info"), fields.get("kind", "")
        entry = {
            "MESSAGE": event,
            "PRIORITY": _PRIORITIES.get(level, 6),
            "SYSLOG_IDENTIFIER": _IDENTIFIER,
            **{f"BPFILTER_{name.upper()}": value for name, value in fields.items()},
        }
        if kind in MESSAGE_IDS:
            entry["MESSAGE_ID"] = MESSAGE_IDS[kind]
        data = b"".join(_field(name, str(value)) for name, value in entry.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
                client.setblocking(False)
                client.sendto(data, self._place)
        except OSError:
            print(event, file=sys.stderr)

    debug = info = warning = error = critical = msg


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
