"""`bpfilter diff`: exit codes and forms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

RULES = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n{}COMMIT\n"
PROGRAM = "import sys; from bpfilter.cli.main import main; sys.argv[0] = 'bpfilter'; main()"


def diff(directory: Path, old: str, new: str, *words: str) -> subprocess.CompletedProcess[str]:
    paths = []
    for name, lines in (("old", old), ("new", new)):
        path = directory / name
        path.write_text(RULES.format(lines))
        paths.append(str(path))
    command = [sys.executable, "-c", PROGRAM, "diff", *paths, *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_no_change_is_said_and_exits_0(tmp_path: Path) -> None:
    done = diff(tmp_path, "-A INPUT -s 10.0.0.0/8 -j DROP\n", "")
    assert done.returncode == 0
    assert "no packet changes verdict" in done.stdout
    assert "without effect" in done.stdout


def test_a_change_exits_2_and_json_says_which(tmp_path: Path) -> None:
    done = diff(tmp_path, "", "-A INPUT -p udp -j ACCEPT\n", "--format", "json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["changed_verdicts"] == 1
    (chain,) = [c for c in document["chains"] if c["chain"] == "INPUT"]
    assert chain["changes"][0]["packets"] == ["udp"]


def test_a_refused_side_is_named_with_its_line(tmp_path: Path) -> None:
    done = diff(tmp_path, "", "-A INPUT -p tcp --dport htpp -j ACCEPT\n")
    assert done.returncode == 2
    assert "new:5: no such port" in done.stderr


def test_two_standard_inputs_make_no_sense() -> None:
    command = [sys.executable, "-c", PROGRAM, "diff", "-", "-"]
    done = subprocess.run(command, capture_output=True, text=True, input="")
    assert done.returncode == 64


def test_many_changes_by_one_rule_are_told_as_one(tmp_path: Path) -> None:
    """One rule in front of many: a person reads what it is, and the largest of what it changes."""
    many = "".join(f"-A INPUT -d 10.0.{n}.0/24 -p udp -j ACCEPT\n" for n in range(60))
    ban = "-A INPUT -s 192.0.2.9/32 -j DROP\n"
    ways = (
        (many, ban + many, "a new rule now decides packets that 60 rules decided", "new", "added"),
        (ban + many, many, "60 rules now decide packets of a rule that is gone", "old", "removed"),
    )
    for old, new, words, side, edit in ways:
        for form in ("text", "markdown", "html"):
            done = diff(tmp_path, old, new, "--format", form)
            assert done.returncode == 2, done.stderr
            assert words in done.stdout.lower(), form
            assert "and 57 more like these" in done.stdout.lower()
            assert done.stdout.count("192.0.2.9") < 15
        done = diff(tmp_path, old, new, "--format", "json")
        (chain,) = (c for c in json.loads(done.stdout)["chains"] if c["chain"] == "INPUT")
        assert len(chain["changes"]) == 60 and chain["complete"] and not chain["reach_undecided"]
        (group,) = chain["groups"]
        assert (group["side"], group["edit"], group["rules"]) == (side, edit, 60)
        assert sorted(group["changes"]) == list(range(60))
        assert group["rule"]["text"] == "-A INPUT -s 192.0.2.9/32 -j DROP"


def test_many_edited_rules_are_summed_up_behind_the_largest(tmp_path: Path) -> None:
    def rules(target: str) -> str:
        return "".join(f"-A INPUT -d 10.0.{n}.0/24 -p udp -j {target}\n" for n in range(25))

    for form in ("text", "markdown", "html"):
        done = diff(tmp_path, rules("ACCEPT"), rules("DROP"), "--format", form)
        assert done.returncode == 2, done.stderr
        assert len(re.findall("1 more: ACCEPT → DROP, now by INPUT", done.stdout)) == 5, form


def test_gaps_that_other_rules_decide_do_not_hide_the_network_of_a_change(tmp_path: Path) -> None:
    """What earlier rules leave of a network reads as the network, not as what is not in it."""
    before = "".join(f"-A INPUT -s 10.{n}.0.0/16 -p udp -j ACCEPT\n" for n in range(1, 60, 7))
    old = before + "-A INPUT -s 10.0.0.0/8 -j ACCEPT\n"
    done = diff(tmp_path, old, before + "-A INPUT -s 10.0.0.0/8 -j DROP\n")
    assert "from 10.0.0.0/8" in done.stdout
    assert "anywhere except" not in done.stdout
