# SPDX-License-Identifier: Apache-2.0
"""Prints the entries of requirements.lock that the product needs on this platform, with hashes.

The lock also holds what developers need. What the product needs is read from the installed
packages' own metadata, so this runs in the environment that `make setup` made.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
_ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==\S+(?: ; (.*?))? \\(?:\n .*)+", re.MULTILINE)


def main() -> None:
    """Writes to standard output; ends with a message if the lock lacks a package."""
    entries = locked((ROOT / "requirements.lock").read_text())
    needed = sorted(closure(product_requirements()))
    if missing := [name for name in needed if name not in entries]:
        sys.exit(f"requirements.lock lacks {', '.join(missing)}; run `make lock`")
    print("\n".join(entries[name] for name in needed))


def product_requirements() -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return [Requirement(text) for text in tomllib.load(file)["project"]["dependencies"]]


def locked(text: str) -> dict[str, str]:
    """Entries of a lock file that hold on this platform, by canonical name."""
    return {
        canonicalize_name(found[1]): found[0]
        for found in _ENTRY.finditer(text)
        if found[2] is None or Marker(found[2]).evaluate()
    }


def closure(wanted: list[Requirement]) -> set[str]:
    """Names of these packages and of all that they need here, extras included."""
    found: set[tuple[str, str]] = set()
    waiting = [(each.name, extra) for each in wanted for extra in ("", *each.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        for each in map(Requirement, requires(name) or ()):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(each.name, more) for more in ("", *each.extras)]
    return {name for name, _ in found}


if __name__ == "__main__":
    main()
