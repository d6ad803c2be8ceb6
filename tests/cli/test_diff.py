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


def test_many_changes_by_one_rule_are_summed_up(tmp_path: Path) -> None:
    """One rule in front of many: a person reads the largest changes and what the others are."""
    many = "".join(f"-A INPUT -d 10.0.{n}.0/24 -p udp -j ACCEPT\n" for n in range(60))
    ban = "-A INPUT -s 192.0.2.9/32 -j DROP\n"
    for form in ("text", "markdown", "html"):
        done = diff(tmp_path, many, ban + many, "--format", form)
        assert done.returncode == 2, done.stderr
        assert re.search(r"40 more: ACCEPT → DROP, now by (INPUT|filter/INPUT) 1", done.stdout)
        assert done.stdout.count("192.0.2.9") < 120
    done = diff(tmp_path, many, ban + many, "--format", "json")
    (chain,) = (c for c in json.loads(done.stdout)["chains"] if c["chain"] == "INPUT")
    assert len(chain["changes"]) == 60 and chain["complete"] and not chain["reach_undecided"]
