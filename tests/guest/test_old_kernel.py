"""A kernel that lacks what the program needs: said in words, and nothing changes.

Linux 6.1 has neither tcx nor netfilter links nor bpf_cast_to_kern_ctx.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpfilter.errors import KernelError
from bpfilter.kernel.probe import probe
from bpfilter.rollout.attached import attached
from bpfilter.rollout.teardown import teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import Case, rules
from tests.cases.enforcing import enforcing
from tests.guest.topologies import saved
from tests.rollout.network import entered

pytestmark = [pytest.mark.kernel, pytest.mark.guest("6.1")]
ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = "bpfilter.cli.main"
PORT = "-A INPUT -i v1 -p udp -m udp --dport 5000 -j ACCEPT"
LACKS = "this kernel cannot run the program; it lacks reading kernel fields of a packet (Linux 6.2)"
HINT = "hint: Linux 6.6 or newer with BTF has all of it"


def command(module: str, *words: str) -> tuple[int, str]:
    """Exit code and output of a command of ours, given by its module."""
    line = [sys.executable, "-c", f"from {module} import main; main()", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    return done.returncode, output


def test_the_probe_says_what_is_missing_and_what_is_done_without() -> None:
    features = probe()
    assert not features.sufficient
    assert features.missing == ("reading kernel fields of a packet (Linux 6.2)",)
    assert [words.split(" (")[0] for words in features.lacking] == ["tcx links", "netfilter links"]


def test_doctor_names_it_as_a_problem_and_changes_nothing() -> None:
    with Case(Backend.LEGACY, Family.IPV4) as case, entered(case.fw):
        case.tables.restore(rules(PORT))
        before = saved(case)
        code, output = command(MAIN, "doctor", "--format", "json")
        assert code == 1, output
        assert "lacks reading kernel fields of a packet (Linux 6.2)" in output
        assert "tcx links (Linux 6.6)" in output
        assert saved(case) == before


def test_a_ruleset_is_translated_and_proven() -> None:
    code, output = command(MAIN, "plan", "--ruleset", "docs/example.rules")
    assert code == 0, output
    assert "native" in output


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--ruleset", "docs/example.rules", "--program"],
        ["eval", "--ruleset", "docs/example.rules", "--pcap", "docs/example.pcap"],
        ["verify", "--ruleset", "docs/example.rules"],
    ],
    ids=lambda words: words[0],
)
def test_what_needs_the_program_says_so(words: list[str]) -> None:
    code, output = command(MAIN, *words)
    assert code == 1, output
    assert LACKS in output
    assert HINT in output


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_no_stage_is_reached_and_the_host_is_as_it_was(backend: Backend) -> None:
    with Case(backend, Family.IPV4) as case:
        case.tables.restore(rules(PORT))
        before = saved(case)
        with (
            pytest.raises(KernelError, match=re.escape(LACKS)),
            enforcing(case, backend, Family.IPV4),
        ):
            pass
        assert saved(case) == before
        with entered(case.fw):
            assert attached() == ()
            teardown()
        assert saved(case) == before


def test_the_daemon_says_so_and_ends(tmp_path: Path) -> None:
    with Case(Backend.NFT, Family.IPV4) as case, entered(case.fw):
        case.tables.restore(rules(PORT))
        words = ["-i", "v1", "--stage", "enforce", "--state", str(tmp_path / "state")]
        code, output = command("bpfilter.cli.daemon", *words)
        assert code == 1, output
        assert LACKS in output
        assert attached() == ()
