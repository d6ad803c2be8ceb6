"""One packet's way through a built-in chain: by the rules, one by one, and by the compiled tables.

Both sides are computed by their own code (`interpret` reads the rules as written, `simulate` the
tables' arrays), for every connection state, so that a difference would show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bpfilter.analysis.conditions import Hook, Scene
from bpfilter.analysis.interpret import Path, interpret, rule_holds
from bpfilter.compiler.compile import compile_ruleset
from bpfilter.compiler.ir import FlatChain, Function, Item, Space, Verdict, Walk
from bpfilter.compiler.layout import Axis, ChainTables
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.simulate import class_id, matching_entries, packet_rows
from bpfilter.compiler.walk import Packet, follow, visited
from bpfilter.errors import UsageError
from bpfilter.ruleset.fields import ALL_STATES, STATES, Family, Field
from bpfilter.ruleset.model import Match, RuleRef, Ruleset

_PREFERRED = {Field.TTL: 64, Field.SOURCE_TYPE: 1, Field.DESTINATION_TYPE: 2}
_HEADERS = {Family.IPV4: 20, Family.IPV6: 40}


@dataclass(frozen=True, slots=True)
class Question:
    """A packet as its hook sees it, in some connection states.

    `fields`: those that are absent are 0, but the TTL is 64, the source unicast, the destination
    local and the length that of a packet without data. Interfaces go by their names.
    """

    family: Family
    hook: Hook
    fields: Mapping[Field, int]
    in_interface: str = ""
    out_interface: str = ""
    states: int = ALL_STATES

    def packet(self, space: Space) -> Packet:
        """Its values as the tables of this space know them."""
        values = {**dict.fromkeys(Field, 0), **_PREFERRED, **self.fields}
        values[Field.LENGTH] = values[Field.LENGTH] or _HEADERS[self.family] + _transport(values)
        if self.hook[1] == "FORWARD" and Field.DESTINATION_TYPE not in self.fields:
            values[Field.DESTINATION_TYPE] = _PREFERRED[Field.SOURCE_TYPE]
        values[Field.IN_INTERFACE] = space.interface_class(self.in_interface)
        values[Field.OUT_INTERFACE] = space.interface_class(self.out_interface)
        values[Field.MASKS] = sum(
            (values[field] & masked.mask == masked.value) << bit
            for bit, (field, masked) in enumerate(space.masks)
        )
        return values


def _transport(values: Mapping[Field, int]) -> int:
    return {6: 20, 17: 8, 1: 8, 58: 8}.get(values[Field.PROTOCOL], 0)


@dataclass(frozen=True, slots=True)
class Missed:
    """A rule that was looked at and did not match; `match` is the first one that failed."""

    rule: RuleRef
    match: Match | None


@dataclass(frozen=True, slots=True)
class Step:
    """A rule (number 0: the policy) that matched, and those passed over since the last one."""

    rule: RuleRef
    missed: tuple[Missed, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the tables make of one field: its class; the row, where a group of fields ends."""

    axis: Axis
    value: int
    found: int
    row: int | None


@dataclass(frozen=True, slots=True)
class StatePath:
    """Both ways in states that they do not tell apart. `entries`: where the program's walk stops.

    `items` and `verdict` as in `interpret.Path`.
    """

    states: int
    steps: tuple[Step, ...]
    items: tuple[Item, ...]
    verdict: Verdict | None
    entries: tuple[int, ...]
    walk: Walk
    agree: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """`function`: the residual as a function of the state; `known`: whether it has a code."""

    ruleset: Ruleset
    chain: ChainPlan
    question: Question
    packet: Packet
    lookups: tuple[Lookup, ...]
    paths: tuple[StatePath, ...]
    function: Function
    known: bool

    @property
    def agree(self) -> bool:
        """Whether rules and tables say the same in every state asked for."""
        return all(path.agree for path in self.paths)


def explain(ruleset: Ruleset, question: Question) -> Explanation:
    """Both ways of a packet. UsageError if the ruleset has no such chain or another family."""
    if question.family is not ruleset.family:
        raise UsageError(
            f"the packet is {question.family}, {ruleset.source} holds {ruleset.family} rules",
            hint=f"--family {question.family}, or name a file with such rules",
        )
    table, name = question.hook
    plan = compile_ruleset(ruleset, [question.hook])
    if not plan.chains:
        raise UsageError(
            f"{ruleset.source} has no chain {name} in table {table}",
            hint="the tables it has: " + (", ".join(ruleset.tables) or "none"),
        )
    return explain_chain(ruleset, plan.chains[question.hook], question)


def explain_chain(ruleset: Ruleset, chain: ChainPlan, question: Question) -> Explanation:
    """The same for a chain that is compiled already."""
    packet = question.packet(chain.flat.space)
    tables = chain.tables
    rows = packet_rows(tables, packet)
    walks: dict[int, Walk] = {}
    entries: dict[int, tuple[int, ...]] = {}
    for number, mask in enumerate(tables.state_classes):
        matching = list(matching_entries(tables, [*rows, tables.state_row_base + number]))
        walks[mask] = follow(tables.flat, matching)[0]
        entries[mask] = tuple(visited(tables.flat, matching))
    function = Function(tuple(walks.items()))
    paths: list[StatePath] = []
    for state in STATES:
        if question.states & state:
            mask = next(mask for mask in walks if mask & state)
            path = _path(ruleset, chain, question, packet, state)
            _join(paths, _compared(chain.flat, path, state, entries[mask], walks[mask]))
    known = function in chain.functions
    lookups = tuple(_lookups(tables, packet))
    return Explanation(ruleset, chain, question, packet, lookups, tuple(paths), function, known)


@dataclass(frozen=True, slots=True)
class _Followed:
    path: Path
    steps: tuple[Step, ...]


def _path(
    ruleset: Ruleset, chain: ChainPlan, question: Question, packet: Packet, state: int
) -> _Followed:
    space = chain.flat.space
    path = interpret(ruleset, chain.treatments, question.hook, space, packet, state)
    scene = Scene.of(question.hook, space)
    matched = list(path.matched)
    steps: list[Step] = []
    missed: list[Missed] = []
    for ref in path.consulted:
        if matched and ref == matched[0]:
            steps.append(Step(matched.pop(0), tuple(missed)))
            missed = []
        else:
            missed.append(Missed(ref, _failing(ruleset, chain, ref, scene, packet, state)))
    steps += [Step(ref, tuple(missed)) for ref in matched]
    return _Followed(path, tuple(steps))


def _failing(
    ruleset: Ruleset, chain: ChainPlan, ref: RuleRef, scene: Scene, packet: Packet, state: int
) -> Match | None:
    treatment = chain.treatments[ref]
    if ref.table == "nat" or rule_holds(ruleset, treatment, ref, scene, packet, state):
        return None
    for match in ruleset.rule(ref).matches[: treatment.static_matches]:
        alternatives = match.alternatives or ()
        if not any(
            all(scene.holds(term, packet, state) for term in terms) for terms in alternatives
        ):
            return match
    return None


def _compared(
    flat: FlatChain, followed: _Followed, state: int, entries: Sequence[int], walk: Walk
) -> StatePath:
    path = followed.path
    items = tuple(flat.items[index] for index in walk.items)
    agree = path.trace == (items, walk.verdict)
    steps = followed.steps
    return StatePath(state, steps, path.items, path.verdict, tuple(entries), walk, agree)


def _join(paths: list[StatePath], new: StatePath) -> None:
    """Put a path to those that are the same but for the state."""
    for index, old in enumerate(paths):
        if (old.steps, old.items, old.verdict, old.entries, old.walk) == (
            new.steps,
            new.items,
            new.verdict,
            new.entries,
            new.walk,
        ):
            states = old.states | new.states
            paths[index] = StatePath(
                states, old.steps, old.items, old.verdict, old.entries, old.walk, old.agree
            )
            return
    paths.append(new)


def _lookups(tables: ChainTables, packet: Packet) -> Sequence[Lookup]:
    """The class of every field that the tables look at, and the rows that they select."""
    found: list[Lookup] = []
    rows = iter(packet_rows(tables, packet))
    for axis in tables.axes:
        value = packet[axis.field]
        row = next(rows) if axis.ends_group else None
        found.append(Lookup(axis, value, class_id(tables, axis, value), row))
    return found
