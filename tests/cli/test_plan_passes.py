"""`plan --pass` prints what every pass made, `plan --program` what the kernel made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpfilter.compiler.compile import compile_ruleset
from bpfilter.report.passes import Pass, pass_document
from bpfilter.ruleset.read import read_text
from tests.cli.test_run import ROOT, bpfilter

EXAMPLE = ROOT / "docs" / "example.rules"
RULES = """*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -s 192.0.2.0/24 -p tcp -m tcp --dport 80:90 -j ACCEPT
-A INPUT -p tcp -m recent --set --name web -j LOG
COMMIT
"""


def rows(shown: Pass) -> list[dict[str, Any]]:
    chain = pass_document(compile_ruleset(read_text(RULES)), shown)[0]
    assert (chain["chain"], chain["pass"]) == ("INPUT", shown)
    return list(chain["rows"])


def test_classified_rules_bear_their_guards_and_reasons() -> None:
    found = rows(Pass.CLASSIFIED)
    assert [row["action"] for row in found] == ["accept", "accept", "item"]
    assert found[1]["guards"] == "source 192.0.2.0/24 protocol 6 destination-port 80-90"
    assert found[2]["reason"] == "match recent"


def test_flat_entries_end_with_the_policy() -> None:
    found = rows(Pass.FLAT)
    assert [row["does"] for row in found] == ["accept", "accept", "item 0", "drop"]
    assert found[0]["states"] == "ESTABLISHED"
    assert found[-1]["packets"] == "any"


def test_functions_are_said_by_state() -> None:
    found = [row["residual"] for row in rows(Pass.FUNCTIONS)]
    assert "ACCEPT" in found
    others = "NEW+RELATED+INVALID+UNTRACKED"
    assert f"{others}: filter/INPUT/3, then DROP; ESTABLISHED: ACCEPT" in found


def test_tables_and_transitions_have_their_sizes() -> None:
    assert {row["field"] for row in rows(Pass.TABLES)} >= {"source", "destination-port", "all"}
    assert "nodes" in rows(Pass.TRANSITIONS)[-1]["residual"]


@pytest.mark.parametrize("shown", list(Pass), ids=str)
def test_every_pass_prints_as_text_and_as_json(shown: Pass) -> None:
    words = ("plan", "--ruleset", str(EXAMPLE), "--pass", shown)
    text = bpfilter(*words)
    assert text.returncode == 0
    assert f"ipv4 filter INPUT: {shown}" in text.stdout
    document = json.loads(bpfilter(*words, "--format", "json").stdout)
    assert document["passes"][0]["rows"]


@pytest.mark.kernel
def test_the_program_is_loaded_described() -> None:
    found = bpfilter("plan", "--ruleset", str(EXAMPLE), "--program", "--format", "json")
    program = json.loads(found.stdout)["program"]
    assert 0 < program["instructions"] < program["verified"]
    assert program["constants"]["mode"] == 1
    assert program["constants"]["mark_mask"]
    sizes = {each["name"]: each["bytes"] for each in program["maps"]}
    assert sizes["ids"] > sizes["ops"] > 0


@pytest.mark.kernel
def test_fewer_fields_make_a_smaller_program(tmp_path: Path) -> None:
    def instructions(text: str) -> int:
        path = tmp_path / "rules"
        path.write_text(text)
        found = bpfilter("plan", "--ruleset", str(path), "--program", "--format", "json")
        return int(json.loads(found.stdout)["program"]["instructions"])

    plain = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n"
    assert instructions(plain) < instructions(RULES)
