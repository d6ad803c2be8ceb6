"""Text that others wrote (comments, prefixes, names), made harmless for every form of a report."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that steer a terminal or a reader's eye instead of showing something."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&]|(?<!\d)[-.]|[-.](?!\d))")
"""All that may mean something; a dot or dash between digits, as in addresses, cannot."""


def printable(text: str) -> str:
    """Text of any bytes (surrogateescape) in which nothing is hidden: bytes that are not UTF-8,
    control characters (terminal escapes, line ends) and directional overrides are written out as
    `\\x1b` or `\\u202e`.
    """
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if decoded.isascii() and decoded.isprintable():
        return decoded
    return "".join(_shown(character) for character in decoded)


def harmless(text: str) -> str:
    """Lines in which nothing else is hidden: as `printable`, but line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" else _shown(c) for c in text)


def shown(value: Any) -> Any:
    """JSON values whose every string is `harmless`, keys too."""
    if isinstance(value, str):
        return harmless(value.encode("utf-8", "surrogateescape").decode(errors="backslashreplace"))
    if isinstance(value, Mapping):
        return {shown(name): shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return value


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def markdown(text: object) -> str:
    """Text as literal Markdown, also inside a cell of a table."""
    return _MARKDOWN.sub(r"\\\1", printable(str(text)))


def markdown_code(text: object) -> str:
    """Text as a Markdown code span that nothing inside it can end, also inside a table."""
    shown = printable(str(text)).replace("|", "\\|")
    fence = "`"
    while fence in shown:
        fence += "`"
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
