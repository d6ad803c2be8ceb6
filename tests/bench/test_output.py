"""What a send costs through OUTPUT: every path is measured, and judges as the rules say."""

from __future__ import annotations

import pytest

from bench.contenders import BACKENDS
from bench.output import costs, egress, text_of
from bpfilter.ruleset.read import read_text


def test_the_list_has_a_rule_for_each_destination() -> None:
    rules = egress(50, 1)
    assert rules == egress(50, 1)
    chain = read_text(text_of(rules)).tables["filter"].chains["OUTPUT"]
    assert len(chain.rules) == len(rules) == 50
    assert 0 < sum(rules.values()) < 50


@pytest.mark.kernel
@pytest.mark.parametrize("dropped", [False, True])
def test_each_path_has_a_figure_of_each_round(*, dropped: bool) -> None:
    """A send that does not end as the rules say, or that the program left alone, raises."""
    samples = costs(20, 2, 0.002, dropped=dropped)
    assert {f"enforce, {backend}" for backend in BACKENDS} <= set(samples)
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in samples.values())
