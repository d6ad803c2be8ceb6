"""Pictures as inline SVG: themed by the page's style classes, described for those who do not see.

No picture carries style of its own, so that a strict Content-Security-Policy can hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

_LEVELS = 5
"""Steps of the heat scale; 0 is cold."""
_MOST_CHAINS = 60
_COLUMN, _ROW, _BOX, _HEIGHT = 250, 40, 190, 28
_LABEL = 22
_APART = 15
"""Between two lines of words."""
_TICK = Markup('<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')


def heat(value: int | None, most: int) -> int:
    """A step of 0 (none) to 5 (the most), logarithmic."""
    if not value or most <= 0:
        return 0
    return max(1, math.ceil(_LEVELS * math.log1p(value) / math.log1p(most)))


def bar(parts: Mapping[str, int], label: str) -> Markup:
    """One horizontal bar in proportion to the parts; each part's class is its name."""
    total = sum(parts.values()) or 1
    drawn, left = Markup(), 0.0
    for name, count in parts.items():
        width = 1000 * count / total
        if count:
            drawn += Markup(
                '<rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="24"><title>{}: {}</title>'
                "</rect>"
            ).format(name, left, max(width - 2, 1), name, count)
        left += width
    return _svg(drawn, 1000, 24, label, "bar")


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: (x, y) with both above zero."""

    name: str
    points: Sequence[tuple[float, float]]


def curves(lines: Sequence[Curve], label: str, across: str, up: str) -> Markup:
    """A log-log plot; every line is named at its last point, every point has its values."""
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup()
    left, top, width, height = 84, 12, 560, 250
    low_x, high_x = _decades([x for x, _ in points])
    low_y, high_y = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + width * (math.log10(x) - low_x) / (high_x - low_x),
            top + height * (1 - (math.log10(y) - low_y) / (high_y - low_y)),
        )

    drawn = Markup()
    for power in range(low_y, high_y + 1):
        _, y = place(10**low_x, 10**power)
        drawn += _TICK.format(x1=left, x2=left + width, y1=f"{y:.1f}", y2=f"{y:.1f}")
        drawn += _text(left - 8, y + 4, f"{10**power:,}", "end")
    for power in range(low_x, high_x + 1):
        x, _ = place(10**power, 10**low_y)
        drawn += _TICK.format(x1=f"{x:.1f}", x2=f"{x:.1f}", y1=top, y2=top + height)
        drawn += _text(x, top + height + 18, f"{10**power:,}", "middle")
    drawn += _text(left + width / 2, top + height + 38, across, "middle")
    drawn += _text(left, top + height + 38, up, "start")
    ends = []
    for number, line in enumerate(lines):
        places = [place(*point) for point in line.points]
        drawn += _line(line, number, places)
        ends.append((places[-1][1], places[-1][0], line.name))
    below = float("-inf")
    for y, x, name in sorted(ends):
        below = max(y, below + _APART)
        drawn += _text(x + 9, below + 4, name, "start")
    return _svg(drawn, 874, top + height + 48, label, "plot")


def growth(points: Sequence[tuple[float, int]], total: int, label: str) -> Markup:
    """A count that grows with time, as steps: (seconds from 0, count), towards a total.

    The scale ends at the total, or not far above the count where that is still far away.
    """
    left, top, width, height = 70, 12, 640, 150
    longest, most = max(points[-1][0], 1e-3), max(min(total, 2 * points[-1][1]), 1)

    def place(seconds: float, count: int) -> tuple[float, float]:
        return left + width * seconds / longest, top + height * (1 - count / most)

    drawn = Markup()
    for tick in sorted({0, most // 2, most}):
        _, y = place(0, tick)
        drawn += _TICK.format(x1=left, x2=left + width, y1=f"{y:.1f}", y2=f"{y:.1f}")
        drawn += _text(left - 8, y + 4, f"{tick:,}", "end")
    steps, (_, last) = [f"{left},{top + height}"], place(0, 0)
    for seconds, count in points:
        x, y = place(seconds, count)
        steps += [f"{x:.1f},{last:.1f}", f"{x:.1f},{y:.1f}"]
        last = y
    drawn += Markup('<polyline class="line l3" points="{}"/>').format(" ".join(steps))
    for share in (0, longest / 2, longest):
        anchor = "start" if share == 0 else "end" if share == longest else "middle"
        drawn += _text(place(share, 0)[0], top + height + 18, f"{share:,.0f} s", anchor)
    return _svg(drawn, left + width + 10, top + height + 26, label, "plot")


def _line(line: Curve, number: int, places: Sequence[tuple[float, float]]) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = Markup('<polyline class="line l{}" points="{}"/>').format(number, path)
    for (x, y), (rules, value) in zip(places, line.points, strict=True):
        drawn += Markup(
            '<circle class="dot l{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {:,.0f} at {:,.0f}'
            "</title></circle>"
        ).format(number, x, y, line.name, value, rules)
    return drawn


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)))
    return low, max(math.ceil(math.log10(max(values))), low + 1)


def chain_graph(table: Mapping[str, Any]) -> Markup:
    """The chains of one table of `graph_document`, and the jumps between them by their traffic.

    A chain stands right of every chain that jumps to it. Past 60 chains those with least traffic
    are left out, and that is said.
    """
    chains, jumps = table["chains"], table["jumps"]
    shown = sorted(chains, key=lambda c: (c["policy"] is None, -(c["packets"] or 0)))
    shown = shown[:_MOST_CHAINS]
    names = {str(chain["chain"]) for chain in shown}
    edges = [jump for jump in jumps if jump["from"] in names and jump["to"] in names]
    places = _places(shown, edges)
    most = max((chain["packets"] or 0 for chain in chains), default=0)
    drawn = Markup()
    for jump in edges:
        drawn += _edge(jump, places[str(jump["from"])], places[str(jump["to"])], most)
    for chain in shown:
        drawn += _box(chain, places[str(chain["chain"])], most)
    width = max(x for x, _ in places.values()) + _BOX + 6
    height = max(y for _, y in places.values()) + _HEIGHT + 6
    left_out = len(chains) - len(shown)
    if left_out:
        drawn += _text(4, height + 16, f"and {left_out} more chains", "start")
        height += 24
    label = f"Chains of table {table['table']} and the jumps between them"
    return _svg(drawn, width, height, label, "graph")


def _places(
    chains: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]]
) -> Mapping[str, tuple[int, int]]:
    depth = {str(chain["chain"]): 0 for chain in chains}
    # Chains never loop, so that many rounds reach the longest path.
    for _ in chains:
        for jump in edges:
            source, target = str(jump["from"]), str(jump["to"])
            depth[target] = max(depth[target], depth[source] + 1)
    filled: dict[int, int] = {}
    places = {}
    for name, column in depth.items():
        row = filled.get(column, 0)
        filled[column] = row + 1
        places[name] = (4 + column * _COLUMN, 4 + row * _ROW)
    return places


def _edge(
    jump: Mapping[str, Any], start: tuple[int, int], end: tuple[int, int], most: int
) -> Markup:
    (x1, y1), (x2, y2) = start, end
    y1, y2 = y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
    x1 += _BOX
    bend = max(40, (x2 - x1) // 2)
    packets = jump["packets"]
    traffic = "" if packets is None else f", {packets:,} packets"
    return Markup(
        '<path class="edge h{}" d="M{} {} C{} {} {} {} {} {}"><title>{} → {}: {} rules{}</title>'
        "</path>"
    ).format(
        heat(packets, most),
        x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2,
        jump["from"], jump["to"], jump["rules"], traffic,
    )  # fmt: skip


def _box(chain: Mapping[str, Any], place: tuple[int, int], most: int) -> Markup:
    x, y = place
    name, packets = str(chain["chain"]), chain["packets"]
    label = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
    traffic = "" if packets is None else f", {packets:,} packets"
    return Markup(
        '<g><title>{}: {} rules{}</title><rect class="box h{}" x="{}" y="{}" width="{}" '
        'height="{}" rx="5"/>{}</g>'
    ).format(
        name, chain["rules"], traffic,
        heat(packets, most),
        x, y, _BOX, _HEIGHT, _text(x + 8, y + 18, label, "start"),
    )  # fmt: skip


def _text(x: float, y: float, words: str, anchor: str) -> Markup:
    return Markup('<text x="{:.0f}" y="{:.0f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, words
    )


def _svg(inside: Markup, width: float, height: float, label: str, name: str) -> Markup:
    return Markup(
        '<svg class="{}" role="img" aria-label="{}" width="{:.0f}" height="{:.0f}" '
        'viewBox="0 0 {:.0f} {:.0f}" preserveAspectRatio="{}">{}</svg>'
    ).format(
        name, label, width, height, width, height, "none" if name == "bar" else "xMinYMin", inside
    )
