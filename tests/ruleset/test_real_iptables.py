"""Our reading held against real iptables: round trips, refusals, live tables, libiptc."""

from __future__ import annotations

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


def test_rules_in_both_backends_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    script = """
    iptables-legacy -A INPUT -p tcp -j ACCEPT
    iptables-nft -A INPUT -p udp -j ACCEPT
    exec "$1" -c '
from bpfilter.errors import LiveReadError
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
try:
    read_live(Family.IPV4)
except LiveReadError as error:
    print(error)
'"""

    said = in_namespace(script, sys.executable, directory=tmp_path)
    assert "both" in said
    assert "hint" in said


@pytest.mark.parametrize(
    "native",
    [
        "nft add rule ip filter INPUT meta l4proto udp numgen inc mod 2 0 accept",
        "nft add set ip filter s {type ipv4_addr;}; nft add rule ip filter INPUT ip saddr @s drop",
        "nft add chain ip filter x {type filter hook input priority 5;}",
    ],
)
def test_native_nft_rules_in_a_table_are_not_read_in_part(native: str, tmp_path: Path) -> None:
    script = f"""
    iptables-nft -A INPUT -p tcp -j ACCEPT
    {native.replace("{", "'{").replace("}", "}'")}
    exec "$1" -c '
from bpfilter.errors import LiveReadError
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
try:
    print("read", len(list(read_live(Family.IPV4).rules())))
except LiveReadError as error:
    print("refused", error)
'"""

    assert in_namespace(script, sys.executable, directory=tmp_path).startswith("refused")
