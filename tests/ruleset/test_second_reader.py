"""libiptc as a second reader of the legacy tables: agreement, disagreement, known defects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpfilter.errors import ReadersDisagree
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.second_reader import DEFECTS, second_reading
from tests.ruleset.ruleset_kernel import OURS, in_namespace

pytestmark = pytest.mark.kernel

SECOND = """
exec "$1" - "$2" <<'END'
import subprocess
import sys
from pathlib import Path
from bpfilter.errors import ReadersDisagree
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_backend
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.second_reader import second_reading
for loaded in sorted(Path(sys.argv[1]).glob("*.loaded")):
    subprocess.run(["iptables-legacy-restore", str(loaded)], check=True)
    ours = read_backend(Family.IPV4, Backend.LEGACY)
    other = loaded.with_suffix(".ours")
    if other.exists():
        ours = read_text(other.read_bytes(), printed=True)
    try:
        print(*second_reading(ours), sep="\\n")
    except ReadersDisagree as error:
        print("disagree", error.message.splitlines()[0])
END
"""


def write(path: Path, rules: list[str]) -> None:
    lines = ["*filter", ":INPUT ACCEPT [0:0]", *(f"-A INPUT {rule}" for rule in rules), "COMMIT"]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def readings(directory: Path) -> list[str]:
    """What the second reader says of each `.loaded` file of a directory, in order of name."""
    said = in_namespace(SECOND, sys.executable, str(directory), directory=directory)
    return [line for line in said.splitlines() if line]


def test_libiptc_reads_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "a.loaded").write_text(OURS)
    assert readings(tmp_path) == []


DIFFERENT = [
    ("-p tcp -m tcp --dport 22 -j DROP", "-p tcp -m tcp --dport 23 -j DROP"),
    ("-p tcp -m tcp --dport 22 -j DROP", "-p tcp -m tcp ! --dport 22 -j DROP"),
    ("-s 10.0.0.1/255.255.0.255 -j DROP", "-s 10.0.0.1/255.255.0.0 -j DROP"),
    ("-i eth0 -j DROP", "-i eth+ -j DROP"),
    ("-p tcp -j DROP", "-p udp -j DROP"),
    ("-j DROP", "-j ACCEPT"),
    ("-f -j DROP", "-j DROP"),
    ("-j LOG --log-prefix a", "-j LOG --log-prefix b"),
    ("-m mark --mark 0x1", "-m mark --mark 0x2"),
]


def test_any_difference_of_a_rule_is_a_disagreement(tmp_path: Path) -> None:
    for index, (loaded, ours) in enumerate(DIFFERENT):
        write(tmp_path / f"{index}.loaded", [loaded])
        write(tmp_path / f"{index}.ours", [ours])
    said = readings(tmp_path)
    assert len(said) == len(DIFFERENT)
    assert {line.split(" disagree on ")[0] for line in said} == {
        "disagree two readers of the legacy tables"
    }


def test_readers_that_see_different_chains_disagree_loudly() -> None:
    # This namespace's legacy tables do not hold this chain.
    ruleset = read_text("*filter\n:nosuch-chain-here - [0:0]\nCOMMIT\n")
    with pytest.raises(ReadersDisagree, match="nosuch-chain-here"):
        second_reading(ruleset)


DEFECTIVE = {
    "text over 1 024 bytes is cut": "-m u32 --u32 "
    + "&&".join(["0=" + ",".join(["100:200"] * 10)] * 10),
    "an apostrophe keeps its backslash": '-m comment --comment "it\'s"',
    "a value that is `!` or begins with `--` is taken for an option": "-m comment --comment !",
    "an option that stands twice is shown once": "-m policy --dir in --pol ipsec --strict"
    " --proto esp --next --proto ah",
    "text that is not UTF-8 is not decoded": "-m comment --comment \udcff",
}


def test_each_known_defect_of_libiptc_gives_a_note(tmp_path: Path) -> None:
    assert list(DEFECTIVE) == [defect.what for defect in DEFECTS]
    write(tmp_path / "a.loaded", list(DEFECTIVE.values()))
    assert readings(tmp_path) == [
        f"filter/INPUT/{number}: not compared word by word, since in libiptc {what}"
        for number, what in enumerate(DEFECTIVE, 1)
    ]


def test_a_second_reader_that_takes_too_long_gives_a_note() -> None:
    (note,) = second_reading(read_text("*filter\nCOMMIT\n"), seconds=0.001)
    assert "did not finish" in note
