"""Our reading held against real iptables: round trips, refusals, live tables, libiptc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_file, read_text
from bpfilter.ruleset.refusal import set_definitions
from bpfilter.ruleset.tools import tool
from bpfilter.ruleset.writer import write
from tests.ruleset.ruleset_kernel import OURS, in_namespace

pytestmark = pytest.mark.kernel
PUBLIC = sorted(Path(__file__).parents[3].glob("shared/rulesets/*.v[46]"))
BIG = 500_000


def saved(text: bytes, ruleset: Ruleset, backend: Backend, directory: Path) -> str:
    """What iptables-save prints after a restore, without comments."""
    (directory / "rules").write_bytes(text)
    (directory / "sets").write_text(set_definitions(ruleset))
    restore, save = (tool(ruleset.family, backend, verb) for verb in ("restore", "save"))
    script = 'ipset restore < "$1/sets"; "$2" < "$1/rules"; "$3"'
    output = in_namespace(script, str(directory), restore, save, directory=directory)
    return "\n".join(line for line in output.splitlines() if not line.startswith("#"))


def assert_round_trip(data: bytes, ruleset: Ruleset, backend: Backend, directory: Path) -> None:
    written = write(ruleset).encode("utf-8", "surrogateescape")
    assert saved(written, ruleset, backend, directory) == saved(data, ruleset, backend, directory)


@pytest.mark.parametrize("backend", list(Backend))
def test_our_text_restores_to_what_the_source_restores_to(backend: Backend, tmp_path: Path) -> None:
    assert_round_trip(OURS.encode(), read_text(OURS), backend, tmp_path)


@pytest.mark.parametrize("backend", list(Backend))
def test_public_rulesets_are_accepted_and_refused_as_iptables_does(
    backend: Backend, tmp_path: Path
) -> None:
    if not PUBLIC:
        pytest.skip("../shared/rulesets is not here")
    for path in PUBLIC:
        data = path.read_bytes()
        if len(data) > BIG:
            continue
        family = Family.IPV6 if path.suffix == ".v6" else Family.IPV4
        (tmp_path / "rules").write_bytes(data)
        try:
            ruleset = read_file(str(path), family=family, backend=backend)
        except RulesetRefused as refusal:
            assert refusal.line is not None, path
            restore = tool(family, backend, "restore")
            script = f'! {restore} --test < "$1" >/dev/null 2>&1'
            in_namespace(script, str(tmp_path / "rules"), directory=tmp_path)
            continue
        if any("does not load" in warning for warning in ruleset.warnings):
            continue
        assert_round_trip(data, ruleset, backend, tmp_path)


def test_what_iptables_refuses_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("*filter\n-A INPUT -j DROP\n-A INPUT -m nosuchmatch --x -j DROP\nCOMMIT\n")
    with pytest.raises(RulesetRefused) as refusal:
        read_file(str(path), backend=Backend.LEGACY)
    assert refusal.value.line == 3
    assert refusal.value.exit_code == 2


def test_without_root_our_grammar_decides_and_says_so() -> None:
    code = "from bpfilter.ruleset.read import read_file; print(*read_file('-').warnings)"
    command = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, input=OURS, capture_output=True, text=True, check=False)
    assert "takes root" in done.stdout, done.stderr
    assert "only bpfilter's grammar has judged" in done.stdout


def test_what_passes_the_test_but_does_not_load_is_planned_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("*filter\n-A nosuch -p tcp -j DROP\n-A INPUT -j nosuch-too\nCOMMIT\n")
    ruleset = read_file(str(path), backend=Backend.NFT)
    assert [rule.chain for rule in ruleset.rules()] == ["INPUT", "nosuch"]
    (warning,) = ruleset.warnings
    assert "passes --test but does not load" in warning
    with pytest.raises(RulesetRefused) as refusal:
        read_file(str(path), backend=Backend.LEGACY)
    assert (refusal.value.line, refusal.value.word) == (2, "nosuch")


@pytest.mark.parametrize("backend", list(Backend))
def test_sets_that_a_ruleset_names_need_not_exist(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(
        "*filter\n-A INPUT -m set --match-set one src -j DROP\n"
        "-A INPUT -m set ! --match-set two src,dst -j SET --add-set three src,dst,src --exist\n"
        "COMMIT\n"
    )
    assert read_file(str(path), backend=backend).warnings == ()


def test_a_host_name_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("*filter\n-A INPUT -s localhost -j DROP\nCOMMIT\n")
    with pytest.raises(RulesetRefused, match="host names are not resolved") as refusal:
        read_file(str(path))
    assert (refusal.value.line, refusal.value.word) == (2, "localhost")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RulesetRefused, match="No such file"):
        read_file(str(tmp_path / "nosuch"))
