"""The property that everything rests on: for any ruleset, the kernel and the program agree.

Rulesets of every static match, user chains, RETURN and goto, negations, connection states and
dynamic rules between them are restored by real iptables; packets from their boundaries are sent.
`make fuzz N=2000` runs long.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

from bpfilter.cli.fuzz import Case, make_case, smallest, try_case
from bpfilter.lab.generate import Shape, random_ruleset
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

EXAMPLES = 20
PACKETS = 100


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Drawn from hypothesis' own random source, so that a failure shrinks."""
    source = draw(st.randoms(use_true_random=False))
    family = draw(st.sampled_from(Family))
    backend = draw(st.sampled_from(Backend))
    chain = draw(st.sampled_from(("INPUT", "FORWARD")))
    text = random_ruleset(source, family, Shape(rules=6, chains=2, chain_rules=3))
    return Case(text, family, backend, chain, draw(st.integers(0, 1000)))


@pytest.mark.kernel
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cases())
def test_kernel_and_program_agree_on_every_packet(case: Case) -> None:
    note(case.text)
    report = try_case(case, PACKETS)
    assume(report is not None)
    assert report is not None
    assert report.holds, report.divergences


@given(st.integers(0, 1 << 30), st.sampled_from(Family))
def test_a_seed_names_a_ruleset_that_can_be_read(seed: int, family: Family) -> None:
    text = random_ruleset(random.Random(seed), family)
    assert text == random_ruleset(random.Random(seed), family)
    read_text(text, family=family, backend=None)


def test_a_number_names_a_case() -> None:
    assert make_case(1, 7) == make_case(1, 7)
    assert make_case(1, 7) != make_case(1, 8)
    assert make_case(1, 7) != make_case(2, 7)


def test_cases_come_from_both_families_backends_and_chains() -> None:
    made = [make_case(3, number) for number in range(60)]
    assert len({(case.family, case.backend, case.chain) for case in made}) == 8


@pytest.mark.kernel
def test_a_divergence_is_reduced_to_the_rules_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
-A INPUT -s 10.0.0.0/8 -j ACCEPT
-A INPUT -p tcp -m comment --comment x -m tcp --dport 22 -j DROP
-A INPUT -p udp -j DROP
COMMIT
"""
    case = Case(text, Family.IPV4, Backend.LEGACY, "INPUT", 1)
    monkeypatch.setattr("bpfilter.cli.fuzz.fails", lambda tried, _packets: "tcp" in tried.text)
    rules = [line for line in smallest(case, PACKETS).text.split("\n") if line.startswith("-A")]
    assert rules == ["-A INPUT -p tcp -m tcp --dport 22 -j DROP"]
