"""The repository keeps its promises to newcomers: commands, licences, wheel, contracts."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def tracked_files() -> list[Path]:
    names = run("git", "ls-files", "-z").split("\0")
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.exists() and not path.is_symlink()]


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("make demo", "make test"):
        assert re.search(rf"^{command}\b", readme, re.MULTILINE), command


def test_make_knows_every_target_that_the_documents_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = set(re.findall(r"^([a-z]+)\b[^:=]*:(?!=)", makefile, re.MULTILINE))
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"(?:^|`)make ([a-z]+)\b", document.read_text(), re.MULTILINE):
            assert target in known, f"{document.name}: make {target}"


def test_ci_ends_with_the_command_of_the_readme() -> None:
    lines = (ROOT / ".ci/run").read_text().split("\n")
    assert [line for line in lines if line.startswith("make ")] == [
        "make setup",
        "make lint",
        "make test",
    ]


def test_every_dependency_is_locked_with_a_hash(project: dict[str, object]) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name in re.findall(r"^([A-Za-z0-9._-]+)==\S+.*\\\n +--hash=", lock, re.MULTILINE)
    }
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
        assert name.lower() in locked, name


def test_no_file_is_somebody_elses_ruleset() -> None:
    rulesets = ROOT.parent / "shared" / "rulesets"
    theirs = {path.read_bytes() for path in rulesets.glob("*.v[46]")}
    assert [path for path in tracked_files() if path.read_bytes() in theirs] == []


def test_sources_are_licensed_where_the_default_does_not_hold() -> None:
    sources = [path for path in tracked_files() if path.suffix in {".c", ".h"}]
    assert sources
    for path in sources:
        assert "SPDX-License-Identifier: GPL-2.0-only" in path.read_text()[:200], path
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "Version 2, June 1991" in (ROOT / "LICENSES/GPL-2.0-only.txt").read_text()


def test_modules_stay_short_enough_to_be_about_one_thing() -> None:
    long = {
        str(path.relative_to(ROOT)): length
        for path in tracked_files()
        if path.suffix in {".py", ".c", ".h"}
        and (length := len(path.read_text().splitlines())) > 450
    }
    assert long == {}


def test_the_wheel_carries_templates_licences_and_no_foreign_module(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for path in tracked_files():
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tree / "bpfilter/api").symlink_to((ROOT / "bpfilter/api").readlink())
    templates = sorted((ROOT / "bpfilter/_templates").glob("*.bpf.o"))
    assert templates, "make templates has not run"
    (tree / "bpfilter/_templates").mkdir()
    for path in templates:
        (tree / "bpfilter/_templates" / path.name).write_bytes(path.read_bytes())
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    run(sys.executable, "-m", "pip", "wheel", *options, str(tree))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"bpfilter/_templates/{path.name}" for path in templates} <= names
    assert "bpfilter/py.typed" in names
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("api/") and path.suffix == ".py":
            name = f"bpfilter/{name}"
        if name.startswith("bpfilter/"):
            assert name in names, f"{name} is missing from the wheel"
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"bpfilter"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/LICENSES/GPL-2.0-only.txt") for name in names)
