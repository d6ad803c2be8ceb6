"""From the static matches of a rule to guards: boxes of integer sets in one chain's space."""

from __future__ import annotations

from collections.abc import Iterable

from bpfilter.compiler.ir import Box, Guard, Space
from bpfilter.compiler.scope import pattern_matches
from bpfilter.ruleset.fields import (
    ALL_STATES,
    EMPTY,
    Family,
    Field,
    Intervals,
    MaskedValue,
    NamePattern,
    State,
    Term,
    field_bits,
)
from bpfilter.ruleset.model import Match

ALWAYS = Guard({}, ALL_STATES)


def intersect(box: Box, other: Box) -> Box | None:
    """The conjunction of two boxes, or None if no packet is in both."""
    if not box:
        return other
    if not other:
        return box
    result = dict(box)
    for field, values in other.items():
        mine = result.get(field)
        if mine is None:
            result[field] = values
        else:
            both = mine if mine == values else mine.intersect(values)
            if not both:
                return None
            result[field] = both
    return result


def narrow(context: Guard, guard: Guard) -> Guard | None:
    """The conjunction of two guards, or None if it is empty."""
    states = context.states & guard.states
    if not states:
        return None
    box = intersect(context.box, guard.box)
    return None if box is None else Guard(box, states)


class GuardBuilder:
    """Builds guards for one hook; results are shared between rules that repeat a match.

    `absent` is the interface field that the hook does not have, `fixed_states` the only states
    that exist there (raw PREROUTING runs before conntrack, so `-m conntrack` sees INVALID:
    net/netfilter/xt_conntrack.c).
    """

    def __init__(self, space: Space, absent: Field | None, fixed_states: int = ALL_STATES) -> None:
        self._space = space
        self._absent = absent
        self._fixed_states = fixed_states
        self._cache: dict[int, tuple[Match, tuple[Guard, ...]]] = {}

    def guards(self, matches: Iterable[Match]) -> tuple[Guard, ...]:
        """Disjoint alternatives of a conjunction of static matches; empty if it never holds."""
        result: tuple[Guard, ...] = (ALWAYS,)
        for match in matches:
            alternatives = self._match(match)
            if alternatives == (ALWAYS,):
                continue
            result = tuple(
                both
                for guard in result
                for alternative in alternatives
                if (both := narrow(guard, alternative)) is not None
            )
        return result

    def _match(self, match: Match) -> tuple[Guard, ...]:
        # Keyed by identity (and kept alive beside it): hashing long term tuples is what costs.
        cached = self._cache.get(id(match))
        if cached is None:
            guards = (self._conjunction(terms) for terms in match.alternatives or ())
            cached = (match, tuple(guard for guard in guards if guard is not None))
            self._cache[id(match)] = cached
        return cached[1]

    def _conjunction(self, terms: tuple[Term, ...]) -> Guard | None:
        guard: Guard | None = ALWAYS
        for term in terms:
            alternative = self._term(term)
            guard = None if alternative is None or guard is None else narrow(guard, alternative)
            if guard is None:
                return None
        return guard

    def _term(self, term: Term) -> Guard | None:
        if term.field is Field.STATE:
            return self._states(term)
        field, values = self._resolve(term)
        if field in (self._absent, Field.FRAGMENT):
            return ALWAYS if 0 in values else None
        if not values:
            return None
        if values == Intervals.full(field_bits(field, self._space.family)):
            return ALWAYS
        return Guard({field: values}, ALL_STATES)

    def _states(self, term: Term) -> Guard | None:
        assert isinstance(term.values, Intervals)
        mask = sum(1 << bit for bit in range(5) if bit in term.values)
        if self._fixed_states != ALL_STATES:
            return ALWAYS if mask & self._fixed_states else None
        return Guard({}, mask) if mask else None

    def _resolve(self, term: Term) -> tuple[Field, Intervals]:
        values = term.values
        if isinstance(values, NamePattern):
            wanted = [
                (index, index)
                for index, name in enumerate(self._space.interfaces)
                if pattern_matches(values, name) != term.negated
            ]
            return term.field, Intervals.of(wanted)
        if isinstance(values, MaskedValue):
            bit = self._space.masks.index((term.field, values))
            return Field.MASKS, mask_bit(bit, not term.negated)
        return term.field, values


def mask_bit(bit: int, wanted: bool) -> Intervals:
    """The values of MASKS in which one bit is as wanted."""
    bits = field_bits(Field.MASKS, Family.IPV4)
    return Intervals.of((v, v) for v in range(1 << bits) if bool(v >> bit & 1) == wanted) or EMPTY


RAW_STATES = int(State.INVALID)
