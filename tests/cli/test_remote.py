"""Verbs by the REST API instead of the journal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfilter.ruleset.model import Backend
from tests.api.test_service import serving
from tests.cli.calling import bpfilter
from tests.rollout.network import Net, entered
from tests.rollout.test_stages import load


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


@pytest.mark.kernel
def test_the_api_tells_what_the_journal_tells(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with serving(net, tmp_path):
        url = f"unix://{tmp_path / 'api.sock'}"
        assert bpfilter("status", "--url", url).returncode == 1
        with entered(net.fw):
            state = ("--state", str(tmp_path / "state"))
            started = bpfilter("shadow", "--interface", "v1", *state)
        assert started.returncode == 0, started.stderr
        status = bpfilter("status", "--url", url)
        assert "stage shadow" in status.stdout, status.stderr
        report = bpfilter("report", "--url", url, "--format", "json")
        assert report.returncode == 0, report.stderr
        assert json.loads(report.stdout)["stage"] == "shadow"
        unknown = bpfilter("confirm", "x", "--url", url)
        assert unknown.returncode == 1 and "nothing waits" in unknown.stderr
        assert bpfilter("rollback", "--url", url).returncode == 0
        assert "rolled back" in bpfilter("history", "--url", url).stdout


def test_an_api_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    gone = bpfilter("status", "--url", f"unix://{tmp_path / 'none.sock'}")
    assert gone.returncode == 1 and "cannot be reached" in gone.stderr
    plain = bpfilter("status", "--url", "http://localhost")
    assert plain.returncode == 64 and "neither unix:// nor https://" in plain.stderr
    both = bpfilter("status", "--url", "unix:///x", "--state", str(tmp_path))
    assert both.returncode == 64


OTHERS = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 4001 -j ACCEPT
COMMIT
"""


def both(net: Net, url: str, *words: str) -> tuple[list[str], list[str], int]:
    """What a command prints on the host and by the API, without what differs from run to run."""
    with entered(net.fw):
        here = bpfilter(*words)
    there = bpfilter(*words, "--url", url)
    assert here.returncode == there.returncode, here.stderr + there.stderr
    return lasting(here.stdout), lasting(there.stdout), there.returncode


def changes(document: Any) -> list[Any]:
    """Without counters, which go on."""
    return [
        (change["packets"], change["old"]["verdict"], change["new"]["verdict"], change["example"])
        for chain in document["chains"]
        for change in chain["changes"]
    ]


def lasting(text: str) -> list[str]:
    return [line for line in text.splitlines() if not re.search(r"\d+ ms|\d s\b|request|/", line)]


@pytest.mark.kernel
def test_reports_by_the_api_are_those_of_the_host(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    (tmp_path / "others.rules").write_text(OTHERS)
    others = str(tmp_path / "others.rules")
    packet = ("udp", "10.99.1.2:5", "10.99.1.1:4001", "--in", "v1")
    with serving(net, tmp_path):
        url = f"unix://{tmp_path / 'api.sock'}"
        for words, code in (
            (("plan",), 0),
            (("plan", "--ruleset", others), 0),
            (("explain", *packet), 0),
            (("explain", *packet, "--ruleset", others, "--ttl", "9", "--state", "NEW"), 0),
        ):
            here, there, ended = both(net, url, *words)
            assert here == there and len(here) > 3, words
            assert ended == code, words
        for words, code in ((("live", others), 2), ((others, others), 0), (("live", "live"), 0)):
            with entered(net.fw):
                local = bpfilter("diff", *words, "--format", "json")
            remote = bpfilter("diff", *words, "--format", "json", "--url", url)
            assert local.returncode == remote.returncode == code, local.stderr + remote.stderr
            documents = [json.loads(done.stdout) for done in (local, remote)]
            assert changes(documents[0]) == changes(documents[1])
        with entered(net.fw):
            found = json.loads(bpfilter("doctor", "--format", "json").stdout)
        told = json.loads(bpfilter("doctor", "--format", "json", "--url", url).stdout)
        subjects = [[each["subject"] for each in one["findings"]] for one in (found, told)]
        assert subjects[0] == subjects[1]


@pytest.mark.kernel
def test_what_is_enforced_is_compared_with_its_traffic(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    (tmp_path / "others.rules").write_text(OTHERS.replace("4001", "4004"))
    others = str(tmp_path / "others.rules")
    with serving(net, tmp_path):
        url = f"unix://{tmp_path / 'api.sock'}"
        words = ("--stage", "enforce", "--gate", "seconds=0", "--url", url)
        assert bpfilter("deploy", "--interface", "v1", *words).returncode == 0
        net.send(4001, 5)
        done = bpfilter("diff", others, "--url", url, "--format", "json")
        assert done.returncode == 2, done.stderr
        document = json.loads(done.stdout)
        assert "enforced" in document["old"]["source"]
        found = [change for chain in document["chains"] for change in chain["changes"]]
        assert any(change["traffic"] for change in found), found
        assert tables.packets("BPF-INPUT") > 0


@pytest.mark.kernel
def test_other_hosts_rules_are_verified_on_this_kernel(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with serving(net, tmp_path):
        url = f"unix://{tmp_path / 'api.sock'}"
        done = bpfilter("verify", "--url", url, "--packets", "100", "--format", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["chains"]


@pytest.mark.kernel
def test_shadow_and_what_only_the_host_can_do(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    with serving(net, tmp_path):
        url = f"unix://{tmp_path / 'api.sock'}"
        started = bpfilter("shadow", "--interface", "v1", "--url", url)
        assert started.returncode == 0 and "stage shadow" in started.stdout, started.stderr
        again = bpfilter("shadow", "--interface", "v1", "--url", url)
        assert again.returncode == 64 and "reached already" in again.stderr
        for words in (
            ("plan", "--program"),
            ("plan", "--measure"),
            ("explain", "--kernel", "tcp", "10.0.0.1:1", "10.0.0.2:2"),
        ):
            refused = bpfilter(*words, "--url", url)
            assert refused.returncode == 64 and "not by the API" in refused.stderr
        wrong = bpfilter("plan", "--ruleset", str(tmp_path / "none"), "--url", url)
        assert wrong.returncode != 0 and "cannot be read" in wrong.stderr
        (tmp_path / "bad.rules").write_text("*filter\n-A INPUT -j\nCOMMIT\n")
        bad = bpfilter("plan", "--ruleset", str(tmp_path / "bad.rules"), "--url", url)
        assert bad.returncode == 1 and "Traceback" not in bad.stderr, bad.stderr
