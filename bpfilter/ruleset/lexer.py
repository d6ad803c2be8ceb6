"""Words of an iptables-restore line, split and unquoted as iptables-restore does.

Source: add_param_to_argv in iptables/xshared.c (1.8.9): words are separated by blanks; a double
quote starts or ends a quoted part; inside it a backslash escapes the next character.
"""

from __future__ import annotations

import re

from bpfilter.errors import RulesetRefused

_BLANK = frozenset(" \t\n")
_PLAIN = re.compile(r"[^ \t\"'\\]+", re.DOTALL)
_BLANKS = re.compile(r"[^ \t\n]+")


def split(line: str, *, source: str = "-", number: int | None = None) -> list[str]:
    """The words of a line. Raises RulesetRefused for a quote that is never closed."""
    if '"' not in line and "\\" not in line:
        return _BLANKS.findall(line)
    words: list[str] = []
    word: list[str] = []
    quoted = escaped = started = False
    for character in line:
        if quoted:
            if escaped:
                word.append(character)
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
            else:
                word.append(character)
        elif character == '"':
            quoted = started = True
        elif character in _BLANK:
            if started:
                words.append("".join(word))
                word, started = [], False
        else:
            word.append(character)
            started = True
    if quoted:
        raise RulesetRefused(
            "a quote is opened and never closed",
            source=source,
            line=number,
            word='"' + "".join(word),
            hint="close the quote on the same line",
        )
    if started:
        words.append("".join(word))
    return words


def quote(word: str) -> str:
    """A word in the form that `split` reads back; quoted only where it must be."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
