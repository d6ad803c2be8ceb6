"""Man pages and completions are made from the command line itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bpfilter.cli.main import app
from tests.cli.calling import PROGRAM, ROOT


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    command = [sys.executable, str(ROOT / "scripts/man_pages.py"), str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return directory


def test_every_verb_has_a_page_that_troff_takes_and_names_its_options(share: Path) -> None:
    cli = typer.main.get_command(app)
    pages = {path.name: path for path in (share / "man/man1").glob("*.1")}
    assert set(pages) == {"bpfilter.1", *(f"bpfilter-{verb}.1" for verb in cli.commands)}
    for name, verb in cli.commands.items():
        shown = rendered(pages[f"bpfilter-{name}.1"])
        shown_to_people = (p for p in verb.params if not getattr(p, "hidden", False))
        options = (o for p in shown_to_people for o in p.opts if o.startswith("--"))
        for option in options:
            assert option in shown, f"{name} {option}"
        assert "EXIT STATUS" in shown
    assert "bpfilter-explain(1)" in rendered(pages["bpfilter.1"])
    assert "--interface" in rendered(share / "man/man8/bpfilterd.8")


def rendered(page: Path) -> str:
    words = ["groff", "-man", "-Tutf8", "-P-c", "-P-b", "-P-u", "-ww", "-rLL=300n", str(page)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_bash_completes_verbs(share: Path, tmp_path: Path) -> None:
    script = share / "bash-completion/completions/bpfilter"
    program = tmp_path / "bpfilter"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    program.chmod(0o755)
    lines = f"""source {script}
COMP_WORDS=(bpfilter ex); COMP_CWORD=1
_bpfilter_completion {program}
echo "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["explain"], done.stderr
