"""Which residual functions packets can meet: found by walking packets, never invented.

A function that is missed costs acceleration (its packets are punted), not correctness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np

from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.guards import intersect
from bpfilter.compiler.ir import PUNTED, Box, FlatChain, Function, OpKind, Verdict, Walk
from bpfilter.compiler.layout import ChainTables
from bpfilter.compiler.sample import Sampler, grown, near_misses
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.walk import Packet

_STATIC_BUDGET = 3000
"""Packets that are enough where only connection states tell functions apart."""

_SIMPLE = {
    OpKind.ACCEPT: Walk((), Verdict.ACCEPT),
    OpKind.DROP: Walk((), Verdict.DROP),
    OpKind.PUNT: PUNTED,
}


def enumerate_functions(
    flat: FlatChain,
    rng: np.random.Generator,
    budget: int,
    tables: ChainTables | None = None,
) -> list[tuple[Function, int]]:
    """The distinct functions met, most frequent first, with how many packets met each.

    `budget` bounds the packets walked. `tables` are the chain's own if they exist already.
    """
    classes = flat.state_classes()
    dynamic = any(entry.kind is OpKind.ITEM for entry in flat.entries)
    if not dynamic and len(classes) == 1:
        counts = Counter(entry.kind for entry in flat.entries if entry.kind in _SIMPLE)
        return [
            (Function(((classes[0], _SIMPLE[kind]),)), count)
            for kind, count in counts.most_common()
        ]
    if not dynamic:
        budget = min(budget, _STATIC_BUDGET)
    packets = list(_packets(flat, Sampler.of(flat, rng), budget))
    found = Counter(functions_of(tables or build_tables(flat), packets))
    return found.most_common()


def _packets(flat: FlatChain, sampler: Sampler, budget: int) -> Iterator[Packet]:
    """Hits of distinct boxes, intersections of the special ones, near misses, random growth."""
    boxes, special = _distinct_boxes(flat, sampler)
    sources = (
        (budget // 3, (sampler.packet(box) for box in boxes)),
        (budget // 3, (sampler.packet(box) for box in _intersections(special, boxes, budget))),
        (budget // 6, near_misses(sampler, special)),
    )
    spent = 0
    for share, source in sources:
        for packet in islice(source, share):
            spent += 1
            if packet is not None:
                yield packet
    for packet in islice(grown(sampler, flat, budget), budget - spent):
        if packet is not None:
            yield packet


def _distinct_boxes(flat: FlatChain, sampler: Sampler) -> tuple[list[Box], list[Box]]:
    """All distinct boxes in random order, and those of entries that shape functions.

    The latter are of items, skips, punts and entries that not every state obeys.
    """
    boxes: dict[tuple[tuple[str, object], ...], Box] = {}
    special: dict[tuple[tuple[str, object], ...], Box] = {}
    universal = flat.entries[-1].states
    for entry in flat.entries:
        key = tuple((field.value, values.ranges) for field, values in entry.box.items())
        boxes[key] = entry.box
        if entry.kind not in (OpKind.ACCEPT, OpKind.DROP) or entry.states != universal:
            special[key] = entry.box
    every = list(boxes.values())
    sampler.random.shuffle(every)
    return every, list(special.values())


def _intersections(special: list[Box], boxes: list[Box], limit: int) -> Iterator[Box]:
    """Boxes of two, then of more entries: each special box with every other, breadth first.

    `limit` bounds how many intersections are tried in all.
    """
    frontier = special
    tried = 0
    seen: set[tuple[tuple[str, object], ...]] = set()
    while frontier:
        deeper: list[Box] = []
        for box in frontier:
            for other in boxes:
                tried += 1
                if tried > 4 * limit:
                    return
                both = intersect(box, other)
                if both is None or both is box:
                    continue
                key = tuple(sorted((field.value, v.ranges) for field, v in both.items()))
                if key not in seen:
                    seen.add(key)
                    deeper.append(both)
                    yield both
        frontier = deeper
