"""The log in journald's own protocol, and elsewhere as lines or JSON."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from bpfilter.daemon.logs import MESSAGE_IDS, configure
from bpfilter.rollout.trouble import Cause
from bpfilter.settings import Daemon

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/service.md"
CATALOG = Path(__file__).resolve().parents[2] / "systemd/bpfilter.catalog"


def test_journald_gets_fields_and_a_stable_message_id(tmp_path: Path) -> None:
    place = tmp_path / "journal.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(place))
        log = configure(Daemon(log_format="journal"), place)
        log.info("stage enforce", kind="stage")
        fields = journald.recv(4096).decode().splitlines()
        assert {"MESSAGE=stage enforce", "PRIORITY=6", "SYSLOG_IDENTIFIER=bpfilterd"} < set(fields)
        assert f"MESSAGE_ID={MESSAGE_IDS['stage']}" in fields
        log.info("two\nlines", kind="mismatch")
        raw = journald.recv(4096)
        assert b"MESSAGE\n\x09\x00\x00\x00\x00\x00\x00\x00two\nlines\n" in raw
        assert b"PRIORITY=4\n" in raw, "a mismatch is a warning"


def test_what_journald_does_not_take_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(Daemon(log_format="journal"), tmp_path / "nobody").info("still said")
    assert "still said" in capsys.readouterr().err


def test_json_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Daemon(log_format="json")).info("it's said", kind="stage")
    found = json.loads(capsys.readouterr().err)
    assert (found["event"], found["kind"], found["level"]) == ("it's said", "stage", "info")


def test_every_cause_has_its_number_and_all_are_documented() -> None:
    assert set(Cause) <= MESSAGE_IDS.keys()
    text, catalog = DOCUMENT.read_text(), CATALOG.read_text()
    for number in set(MESSAGE_IDS.values()):
        assert number in text
        assert re.search(rf"^-- {number}$", catalog, re.MULTILINE)
