"""What a comparison must show to end a stage, and how soon what failed is tried again."""

from __future__ import annotations

from bpfilter.rollout.comparison import Unseen
from bpfilter.rollout.guards import Guards, inspect
from bpfilter.rollout.pace import LONGEST, STEADY_SECONDS, Pace
from bpfilter.rollout.trouble import Cause
from tests.rollout.test_gates import SAME, SINCE, WAIVER, WRONG, comparison


def test_one_unexplained_mismatch_ends_a_stage_and_names_the_rule() -> None:
    seen = comparison({1: {SAME: 1000, WRONG: 1}})
    trouble = inspect(Guards(), seen, (), SINCE)
    assert trouble is not None
    assert trouble.cause is Cause.MISMATCH
    assert "1 packets at ipv4 filter/INPUT/1 were predicted ACCEPT and were DROP" in trouble
    assert inspect(Guards(), seen, [WAIVER], SINCE) is None
    assert inspect(Guards(), seen, [WAIVER], WAIVER.expires) is not None


def test_lost_events_end_a_stage_above_their_bound() -> None:
    assert inspect(Guards(lost=5), comparison(unseen={Unseen.LOST: 5}), (), SINCE) is None
    trouble = inspect(Guards(lost=5), comparison(unseen={Unseen.LOST: 6}), (), SINCE)
    assert trouble is not None
    assert trouble.cause is Cause.LOST
    assert inspect(Guards(lost=5), comparison(unseen={Unseen.BEFORE: 99}), (), SINCE) is None


def test_edits_are_followed_at_once_until_they_crowd() -> None:
    pace = Pace()
    assert [pace.after(Cause.RULESET, number * 0.1) for number in range(20)] == [0.0] * 20
    assert pace.after(Cause.RULESET, 2.1) == 1.0
    assert pace.after(Cause.RULESET, 1000.0) == 0.0


def test_what_keeps_failing_is_tried_ever_later_until_it_held_for_a_while() -> None:
    pace = Pace()
    pauses, now = [], 0.0
    for _ in range(8):
        pauses.append(pace.after(None, now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST, LONGEST]
    assert pace.after(Cause.DISPATCH, now + LONGEST + STEADY_SECONDS + 1) == 1.0
