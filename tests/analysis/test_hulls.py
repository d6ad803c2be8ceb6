"""Hulls never leave out a rule that shares packets with another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfilter.analysis.hulls import Hulls, Part
from bpfilter.ruleset.fields import Family, Field, Intervals, Term

FIELDS = (Field.SOURCE, Field.DESTINATION, Field.DESTINATION_PORT)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    def drawn_term() -> Term:
        low = draw(st.integers(0, 9))
        values = Intervals.of([(low, low + draw(st.integers(0, 4)))])
        return Term(draw(st.sampled_from(FIELDS)), values)

    def alternatives() -> tuple[tuple[Term, ...], ...]:
        sizes = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        return tuple(tuple(drawn_term() for _ in range(size)) for size in sizes)

    return tuple(alternatives() for _ in range(draw(st.integers(0, 2))))


def members(part: Part) -> set[tuple[int, int, int]]:
    every = {(a, b, c) for a in range(15) for b in range(15) for c in range(15)}
    for alternatives in part:
        every = {
            packet
            for packet in every
            if any(
                all(packet[FIELDS.index(term.field)] in _values(term) for term in terms)
                for terms in alternatives
            )
        }
    return every


def _values(term: Term) -> Intervals:
    assert isinstance(term.values, Intervals)
    return term.values


@given(st.lists(parts(), min_size=2, max_size=4))
def test_rules_that_share_packets_are_found(rules: list[Part]) -> None:
    hulls = Hulls(rules, Family.IPV4, np.ones(len(rules), dtype=np.bool_))
    last = len(rules) - 1
    packets = members(rules[last])
    for row in range(last):
        if packets & members(rules[row]):
            assert row in hulls.earlier(last)


@pytest.mark.parametrize("family", Family)
def test_rules_apart_and_rules_not_usable_are_left_out(family: Family) -> None:
    shift = 96 if family is Family.IPV6 else 0
    rules: list[Part] = [
        (((Term(Field.SOURCE, Intervals.single(low << shift, (low + 1) << shift)),),),)
        for low in (10, 20, 10, 11, 10)
    ]
    hulls = Hulls(rules, family, np.array([True, True, False, True, True]))
    assert hulls.earlier(4).tolist() == [0, 3]
    assert hulls.enclosing(4).tolist() == [0]
