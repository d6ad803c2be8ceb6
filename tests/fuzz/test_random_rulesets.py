"""The property: for any ruleset, real iptables and the program give every packet one verdict.

Rulesets are drawn over all static matches, user chains with RETURN and goto, negations, connection
states, and dynamic rules between them; `make fuzz` draws more of them.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpfilter.cli.fuzz import Case, fuzz_command, make_case, smallest, try_case
from bpfilter.compiler import tables, tries
from bpfilter.errors import LabError, RulesetRefused
from bpfilter.kernel import pack
from bpfilter.lab.generate import random_ruleset
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

PACKETS = 200
EXAMPLES = 12

CASES = st.builds(
    lambda source, family, backend, chain, seed: Case(
        random_ruleset(source, family), family, backend, chain, seed
    ),
    st.randoms(use_true_random=False),
    st.sampled_from(list(Family)),
    st.sampled_from(list(Backend)),
    st.sampled_from(["INPUT", "FORWARD"]),
    st.integers(0, 1 << 30),
)


@pytest.mark.kernel
@pytest.mark.long
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    database=None,
)
@given(CASES)
def test_kernel_and_program_agree_on_every_packet(case: Case) -> None:
    report = try_case(case, PACKETS)
    if report is not None:
        assert report.holds, f"{case.text}\n{report.divergences}"
        assert sum(chain.shadow.packets for chain in report.chains) >= PACKETS


@pytest.mark.parametrize("family", list(Family))
def test_what_is_drawn_is_mostly_taken_by_our_reader(family: Family) -> None:
    refused = 0
    for seed in range(100):
        try:
            read_text(random_ruleset(random.Random(seed), family), family=family)
        except RulesetRefused:
            refused += 1
    assert refused == 0


def test_a_seed_names_a_case() -> None:
    assert make_case(3, 14) == make_case(3, 14)
    assert make_case(3, 14) != make_case(3, 15)


def test_a_failing_case_is_reduced_to_what_the_failure_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = next(
        case for number in range(1000) if "-j REJECT" in (case := make_case(5, number)).text
    )
    monkeypatch.setattr("bpfilter.cli.fuzz.fails", lambda other, _: "-j REJECT" in other.text)
    rules = [line for line in smallest(case, PACKETS).text.split("\n") if line.startswith("-A")]
    assert len(rules) == 1
    assert rules[0].count(" -m ") <= 1


@pytest.mark.kernel
def test_a_failing_lab_is_counted_apart_and_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(_: object) -> None:
        raise LabError("a frame of 98 bytes cannot be sent: Cannot allocate memory")

    monkeypatch.setattr("bpfilter.cli.fuzz.verify", out_of_memory)
    assert fuzz_command(rulesets=2, packets=1, seed=1, first=0) == 1
    said = capsys.readouterr().out
    assert "ruleset 1: the lab failed: a frame of 98 bytes" in said
    assert "2 rulesets: 0 refused, 2 lab failures, 0 packets compared, 0 divergences" in said


def test_large_lays_tables_out_as_those_of_large_sets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "UNPAIRED_WORDS", tables.UNPAIRED_WORDS)
    monkeypatch.setattr(tries, "TABLES_ALONE", tries.TABLES_ALONE)
    monkeypatch.setattr(pack, "ALONE", pack.ALONE)
    found = []

    def tried(case: Case, packets: int) -> None:
        found.append((tables.UNPAIRED_WORDS, tries.TABLES_ALONE, pack.ALONE))

    monkeypatch.setattr("bpfilter.cli.fuzz.try_case", tried)
    fuzz_command(rulesets=1, large=True)
    assert found == [(0, -1, 0)]
