"""The Debian package's sources say what the product says; `make package-test` builds it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bpfilter.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "systemd/debian"
CONFFILE = DEBIAN / "bpfilter.toml"


def uncommented() -> dict[str, Any]:
    """The configuration with all settings that it shows as comments."""
    settings = re.compile(r"^#(?=\[|[a-z_]+ = )", re.MULTILINE)
    return tomllib.loads(settings.sub("", CONFFILE.read_text()))


def names(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Keys of a section and those below it, as `api.roles.read_users`."""
    found = set()
    for name, field in section.model_fields.items():
        inner = [
            each
            for each in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(each, type) and issubclass(each, BaseModel)
        ]
        found |= names(inner[0], f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
    return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if isinstance(value, dict) and f"{prefix}{name}" != "deployment.xdp":
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def test_the_configuration_that_is_installed_changes_nothing() -> None:
    assert load(CONFFILE, {}) == Settings()


def test_the_configuration_shows_every_setting_with_its_default() -> None:
    shown = flat(uncommented())
    rare = {"api.tcp.certificate_roles"}
    assert set(shown) == names(Settings) - rare
    given = Settings.model_validate(uncommented()).model_dump(mode="json")
    optional = ("api.tcp.", "deployment.probe.", "deployment.backend")
    defaults = flat(Settings().model_dump(mode="json"))
    for name, value in flat(given).items():
        if not name.startswith(optional):
            assert value == defaults[name], name


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm", "tidy"])
def test_scripts_are_shell(name: str) -> None:
    done = subprocess.run(["sh", "-n", DEBIAN / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_and_the_project_agree_on_version_and_python() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert (DEBIAN / "changelog").read_text().startswith(f"bpfilter ({project['version']}) ")
    control = (DEBIAN / "control").read_text()
    lowest = project["requires-python"]
    assert f"python3 ({lowest.replace('>=', '>= ')})" in control
    major, minor = lowest.removeprefix(">=").split(".")
    assert f"python3 (<< {major}.{int(minor) + 1})" in control


def test_the_products_packages_are_locked_and_the_developers_are_left_out() -> None:
    words = [sys.executable, ROOT / "scripts/runtime_lock.py"]
    lock = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    assert {re.split(r"[^a-z0-9-]", each)[0] for each in wanted} <= locked
    assert locked & {"pytest", "scapy", "mypy", "setuptools", "hypothesis"} == set()
    assert lock.count("==") == len(locked) < lock.count("--hash=sha256:")


def test_every_file_that_the_recipe_takes_is_there() -> None:
    for line in (DEBIAN / "install").read_text().splitlines():
        source = line.split()[0]
        assert (DEBIAN / source).exists() or (ROOT / "systemd" / source).exists(), source
    for pattern in (DEBIAN / "docs").read_text().split():
        assert list(ROOT.glob(pattern)), pattern
