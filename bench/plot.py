"""Cost over the number of rules, log-log, one line per path, as an SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.compare import Row

_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 230, 40, 50
_COLOURS = (
    *("#1b6ca8", "#d1495b", "#2e933c", "#8e5bb5", "#e08e1b", "#3a3a3a"),
    *("#17a2a2", "#b0306a", "#7a6a4f", "#5b7fd1", "#9aa11c", "#c46a3f"),
)

Point = tuple[float, float]


def cost_plot(rows: Sequence[Row], title: str) -> str:
    """The drawing; rows of one title differ in path and rules only. Empty without a row."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        lines.setdefault(row.path, []).append((row.rules, row.ns_per_packet))
    if not lines:
        return ""
    points = [point for line in lines.values() for point in line]
    scale = _Scale(_span([x for x, _ in points]), _span([y for _, y in points]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
        *_grid(scale),
    ]
    for number, (path, line) in enumerate(sorted(lines.items(), key=_last_cost)):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _line(scale, path, sorted(line), colour, number)
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """Decades to pixels."""

    def __init__(self, across: tuple[int, int], up: tuple[int, int]) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        low, high = self.across
        share = (math.log10(value) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.up
        share = (math.log10(value) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _span(values: Sequence[float]) -> tuple[int, int]:
    """The decades that hold all values: at least one."""
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def _last_cost(line: tuple[str, list[Point]]) -> float:
    return -max(line[1])[1]


def _grid(scale: _Scale) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for decade in range(scale.across[0], scale.across[1] + 1):
        x = scale.x(10.0**decade)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_si(decade)}</text>'
        )
    for decade in range(scale.up[0], scale.up[1] + 1):
        y = scale.y(10.0**decade)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_si(decade)}</text>'
        )
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 12}">rules</text>')
    parts.append(
        f'<text transform="translate(18 {(_TOP + bottom) / 2}) rotate(-90)" '
        'text-anchor="middle">ns per packet, sender included</text>'
    )
    return parts


def _si(decade: int) -> str:
    return f"{10**decade:,}".replace(",", " ") if decade >= 0 else f"{10.0**decade:g}"


def _line(scale: _Scale, path: str, points: Sequence[Point], colour: str, number: int) -> list[str]:
    drawn = [(scale.x(x), scale.y(y)) for x, y in points]
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
    y = _TOP + 16 * number
    legend = _WIDTH - _RIGHT + 16
    return [
        f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *dots,
        f'<path d="M{legend} {y + 8}h18" stroke="{colour}" stroke-width="3"/>',
        f'<text x="{legend + 24}" y="{y + 12}">{escape(path)}</text>',
    ]
