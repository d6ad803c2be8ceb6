"""Consoles for people. What rules, chains and interfaces are called is hostile input here.

Rich drops few control characters by itself: an escape sequence in a rule's comment would reach the
terminal. Here every one is written out, as `bpfilter.report.safe` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from bpfilter.report.safe import harmless


class SafeConsole(Console):
    """A console that passes no control character of what is printed; its own styles stay."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As `rich.console.Console.render`, with harmless text."""
        return _safe(super().render(renderable, options))


def _safe(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        if segment.control is None:
            yield Segment(harmless(segment.text), segment.style)
        else:
            yield segment


def terminal(**options: Any) -> Console:
    """For standard output, or what the options of `rich.console.Console` say."""
    return SafeConsole(**{"highlight": False, **options})


def indented(console: Console, words: str, indent: int, style: str = "") -> None:
    """Words that stay behind their indent where the terminal is too narrow for them."""
    console.print(Padding(Text(words, style), (0, 0, 0, indent), expand=False))
