"""Every command that the documents show is run, and says what they show.

A `console` block holds commands behind `$ ` and the lines they print. Numbers may differ, and `…`
stands for lines left out. A command that exits with another code than 0 says so: `# exits 2`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXITS = re.compile(r"\s+# exits (\d+)$")
_NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Shown:
    """One command of a document with the lines shown below it."""

    document: str
    command: str
    code: int
    lines: tuple[str, ...]


def shown(path: Path) -> list[Shown]:
    found = []
    for block in _BLOCK.findall(path.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            while command.endswith("\\"):
                command = command[:-1] + lines.pop(0).removeprefix("> ").lstrip()
            code = _EXITS.search(command)
            name = path.relative_to(ROOT).as_posix()
            wanted = tuple(line for line in lines if line.strip() not in ("", "…"))
            found.append(Shown(name, _EXITS.sub("", command), int(code[1]) if code else 0, wanted))
    return found


SHOWN = [entry for path in DOCUMENTS for entry in shown(path)]


def blurred(line: str) -> str:
    return " ".join(_NUMBER.sub("N", line).split())


@pytest.mark.kernel
@pytest.mark.xdist_group("documents")
@pytest.mark.parametrize("entry", SHOWN, ids=lambda entry: f"{entry.document}: {entry.command}")
def test_a_command_does_what_the_document_shows(entry: Shown) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", entry.command],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == entry.code, output
    printed = {blurred(line) for line in output.splitlines()}
    assert [line for line in entry.lines if blurred(line) not in printed] == [], output


def test_the_documents_show_every_verb_that_needs_no_host() -> None:
    commands = " ".join(entry.command for entry in SHOWN)
    for verb in ("plan", "eval", "verify"):
        assert f"bpfilter {verb} " in commands
