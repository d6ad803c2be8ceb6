"""Checks that every code an image can write into the mark stands for what the packet did.

The proof ends at the walks of a packet; the program turns those into a code by the transitions of
`compiler/layout.py`, and the dispatch executes the function that the code stands for. Here every
path through the transitions is followed, independent of how the compiler made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bpfilter.compiler.ir import PUNTED, Function, Verdict, Walk
from bpfilter.compiler.layout import Outcome
from bpfilter.compiler.plan import Image, Slot
from bpfilter.errors import ProofFailed

_ROOT = 1
_FINAL = 3
_VERDICTS = {0: Verdict.ACCEPT, 1: Verdict.DROP}
_PUNT = 2
_Path = tuple[int, tuple[tuple[int, Walk], ...]]


def prove_codes(image: Image) -> None:
    """Follow all paths of all slots; a path that ends without a code is punted, which is right.

    Raises ProofFailed if one ends with a code, or an outcome, that is not the one of its walks.
    """
    if len({code.number for code in image.codes}) != len(image.codes):
        raise _failed("two residuals share a code")
    for slot in image.slots:
        scope = slot.plan.flat.family, slot.plan.table, slot.plan.chain
        functions = {
            code.number: code.function
            for code in image.codes
            if (code.family, code.table, code.chain) == scope
        }
        for node, walks in _paths(slot):
            value = int(slot.transitions.nodes[node][_FINAL])
            function = Function(walks)
            if value and (
                functions.get(value & 255) != function or value >> 8 != _outcome(function)
            ):
                raise _failed(f"code {value & 255} of {scope[1]}/{scope[2]} is for other rules")


def _outcome(function: Function) -> Outcome:
    """RESIDUAL unless all states end in the same verdict, and without an item."""
    walks = {walk for _, walk in function.walks}
    for outcome, walk in (
        (Outcome.ACCEPT, Walk((), Verdict.ACCEPT)),
        (Outcome.DROP, Walk((), Verdict.DROP)),
        (Outcome.PUNT, PUNTED),
    ):
        if walks == {walk}:
            return outcome
    return Outcome.RESIDUAL


def _paths(slot: Slot) -> list[_Path]:
    """Where all combinations of walks end, one walk for each class of states, in order."""
    edges: dict[int, list[tuple[int, int]]] = {}
    for (node, item), behind in slot.transitions.edges.items():
        edges.setdefault(node, []).append((item, behind))
    found: list[_Path] = [(_ROOT, ())]
    for mask in slot.plan.tables.state_classes:
        longer: list[_Path] = []
        for node, walks in found:
            for end, walk in _walks(slot, edges, node):
                longer.append((end, (*walks, (mask, walk))))
        found = longer
        ends = {node for node, _ in found}
        if len(ends) < len(found) or any(node >= len(slot.transitions.nodes) for node in ends):
            raise _failed(_NO_TREE)
    return found


def _walks(
    slot: Slot, edges: Mapping[int, Sequence[tuple[int, int]]], began: int
) -> Iterator[tuple[int, Walk]]:
    """The nodes at which a walk that begins at a node can end; the dead node is left out."""
    nodes, items = slot.transitions.nodes, slot.plan.flat.items
    waiting: list[tuple[int, tuple[int, ...]]] = [(began, ())]
    seen: set[int] = set()
    while waiting:
        at, passed = waiting.pop()
        if at in seen or at >= len(nodes):
            raise _failed(_NO_TREE)
        seen.add(at)
        for column, verdict in _VERDICTS.items():
            if nodes[at][column]:
                yield int(nodes[at][column]), Walk(passed, verdict)
        for item, behind in edges.get(at, ()):
            if behind and item < len(items) and items[item].terminal:
                yield behind, Walk((*passed, item), None)
            elif behind:
                waiting.append((behind, (*passed, item)))
    if nodes[began][_PUNT]:
        yield int(nodes[began][_PUNT]), PUNTED


_NO_TREE = "the transitions are not a tree"


def _failed(why: str) -> ProofFailed:
    return ProofFailed(
        f"the codes are not those of the rules: {why}",
        hint="this is a bug of bpfilter; iptables filters as before, please report it",
    )
