"""What real iptables says of a ruleset: `iptables-restore --test` in a throwaway namespace."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.tools import PATH, find, tool

_LINE = re.compile(r"line:? (\d+)")
_WORD = re.compile(r"[`'\"]([^`'\"\s]+)[:']")
_SET_TYPES = {1: "hash:net", 2: "hash:ip,port", 3: "hash:ip,port,net"}
_TIMEOUT = 120.0

# The namespace dies with the shell; each tool's exit code and words stay in the directory.
_SCRIPT = """
cd "$1" || exit 1
[ -s sets ] && ipset restore < sets > sets.out 2>&1
"$2" --test < rules > test.out 2>&1; echo $? > test.rc
[ "$(cat test.rc)" = 0 ] || exit 0
"$2" < rules > load.out 2>&1; echo $? > load.rc
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`refusal`: what --test said, if it refused; `warning`: what loading said, if it failed."""

    refusal: str | None
    line: int | None
    warning: str | None


def can_ask() -> bool:
    """Whether namespaces can be made here at all."""
    return os.geteuid() == 0 and find("unshare") is not None


def ask_kernel(data: bytes, ruleset: Ruleset, backend: Backend) -> Verdict | None:
    """Try a ruleset with the real tool, sets it refers to created empty; None if there is none.

    Nothing outside the throwaway network namespace is touched.
    """
    restore = find(tool(ruleset.family, backend, "restore"))
    unshare = find("unshare")
    if restore is None or unshare is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bpfilter-test-") as directory:
        place = Path(directory)
        (place / "rules").write_bytes(data)
        (place / "sets").write_text(set_definitions(ruleset))
        environment = {
            **os.environ,
            "PATH": PATH,
            "LC_ALL": "C",
            "XTABLES_LOCKFILE": str(place / "lock"),
        }
        command = [unshare, "--net", "sh", "-c", _SCRIPT, "sh", directory, restore]
        subprocess.run(
            command, env=environment, timeout=_TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
        return _judge(place)


def _judge(place: Path) -> Verdict | None:
    if not (place / "test.rc").exists():
        return None
    said = (place / "test.out").read_text("utf-8", "backslashreplace").strip()
    if (place / "test.rc").read_text().strip() != "0":
        lines = _LINE.findall(said)
        return Verdict(_summary(said), int(lines[-1]) if lines else None, None)
    load = place / "load.rc"
    if load.exists() and load.read_text().strip() != "0":
        text = (place / "load.out").read_text("utf-8", "backslashreplace").strip()
        return Verdict(None, None, f"passes --test but does not load: {_summary(text)}")
    return Verdict(None, None, None)


def _summary(said: str) -> str:
    """The tool's words on one line, without its advice."""
    lines = [line.strip() for line in said.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Try `", "# Warning"))]
    return " / ".join(kept) or "it gave no message"


def refusal_of(verdict: Verdict, source: str, restore: str) -> RulesetRefused:
    """The error for a ruleset that --test refuses."""
    assert verdict.refusal is not None
    word = _WORD.search(verdict.refusal)
    return RulesetRefused(
        f"{restore} --test refuses it: {verdict.refusal}",
        source=source,
        line=verdict.line,
        word=word[1] if word else None,
        hint="correct the line; `--backend` chooses which iptables judges",
    )


def set_definitions(ruleset: Ruleset) -> str:
    """`ipset restore` text that creates every set the rules refer to, empty."""
    family = "inet" if ruleset.family is Family.IPV4 else "inet6"
    wanted: dict[str, int] = {}
    for name, flags in _set_uses(ruleset):
        wanted[name] = max(wanted.get(name, 0), flags.count(",") + 1)
    lines = (
        f"create {name} {_SET_TYPES.get(count, _SET_TYPES[3])} family {family} timeout 0\n"
        for name, count in wanted.items()
    )
    return "".join(lines)


def _set_uses(ruleset: Ruleset) -> Iterator[tuple[str, str]]:
    options = ("--match-set", "--add-set", "--del-set", "--map-set")
    for rule in ruleset.rules():
        words = [word for match in rule.matches if match.name == "set" for word in match.words]
        words += rule.target.words
        for index, word in enumerate(words[:-2]):
            if word in options:
                yield words[index + 1], words[index + 2]
