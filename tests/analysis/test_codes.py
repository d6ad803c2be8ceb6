"""Every code stands for the walks that lead to it, and a wrong transition is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from bpfilter.analysis.codes import prove_codes
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.layout import Transitions
from bpfilter.compiler.plan import Image
from bpfilter.errors import ProofFailed
from bpfilter.ruleset.model import Ruleset
from tests.analysis.built import ACCEPT, DROP, LOG, REJECT, chain, port, protocol, ruleset, state
from tests.analysis.random_rulesets import rulesets

INPUT = ("filter", "INPUT")


def image() -> Image:
    lines = [
        ([state(1, 2)], ACCEPT),
        ([protocol(6), port(98)], LOG),
        ([protocol(6), port(99)], LOG),
        ([protocol(17)], LOG),
        ([protocol(17), port(53)], ACCEPT),
        ([protocol(17)], REJECT),
        ([protocol(6), port(22), state(0)], ACCEPT),
        ([protocol(6), port(23)], DROP),
    ]
    return assemble([compile_ruleset(ruleset(chain("INPUT", lines, "DROP")), [INPUT])])


def test_the_codes_of_a_compiled_image_are_proven() -> None:
    prove_codes(image())


@settings(max_examples=40, deadline=None)
@given(source=rulesets("INPUT"))
def test_the_codes_of_random_rulesets_are_proven(source: Ruleset) -> None:
    prove_codes(assemble([compile_ruleset(source, [INPUT])]))


Breaking = Callable[[Transitions], Transitions]


def finals(transitions: Transitions) -> list[int]:
    return [n for n in range(len(transitions.nodes)) if transitions.nodes[n][3]]


def swapped_codes(transitions: Transitions) -> Transitions:
    nodes = transitions.nodes.copy()
    first, second = finals(transitions)[:2]
    nodes[[first, second], 3] = nodes[[second, first], 3]
    return replace(transitions, nodes=nodes)


def other_outcome(transitions: Transitions) -> Transitions:
    nodes = transitions.nodes.copy()
    nodes[finals(transitions)[0]][3] ^= 3 << 8
    return replace(transitions, nodes=nodes)


def code_without_a_function(transitions: Transitions) -> Transitions:
    nodes = transitions.nodes.copy()
    nodes[finals(transitions)[0]][3] ^= 0xFF
    return replace(transitions, nodes=nodes)


def accept_leads_to_drop(transitions: Transitions) -> Transitions:
    nodes = transitions.nodes.copy()
    nodes[1][[0, 1]] = nodes[1][[1, 0]]
    return replace(transitions, nodes=nodes)


def item_leads_back(transitions: Transitions) -> Transitions:
    return replace(transitions, edges={key: key[0] for key in transitions.edges})


def item_leads_outside(transitions: Transitions) -> Transitions:
    return replace(transitions, edges=dict.fromkeys(transitions.edges, len(transitions.nodes)))


def other_item(transitions: Transitions) -> Transitions:
    swapped = {0: 1, 1: 0}
    edges = transitions.edges.items()
    return replace(
        transitions,
        edges={(node, swapped.get(item, item)): end for (node, item), end in edges},
    )


@pytest.mark.parametrize(
    "breaking",
    [
        swapped_codes,
        other_outcome,
        code_without_a_function,
        accept_leads_to_drop,
        item_leads_back,
        item_leads_outside,
        other_item,
    ],
)
def test_a_wrong_transition_is_caught(breaking: Breaking) -> None:
    sound = image()
    slot = sound.slots[0]
    broken = replace(slot, transitions=breaking(slot.transitions))
    with pytest.raises(ProofFailed, match="codes"):
        prove_codes(replace(sound, slots=(broken,)))


def test_a_missing_transition_punts_and_is_no_fault() -> None:
    sound = image()
    slot = sound.slots[0]
    prove_codes(
        replace(sound, slots=(replace(slot, transitions=replace(slot.transitions, edges={})),))
    )


def test_two_functions_with_one_code_are_caught() -> None:
    sound = image()
    twice = replace(sound.codes[0], number=sound.codes[1].number)
    with pytest.raises(ProofFailed, match="share"):
        prove_codes(replace(sound, codes=(twice, *sound.codes[1:])))
