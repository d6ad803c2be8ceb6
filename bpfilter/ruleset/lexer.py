"""Words of an iptables-restore line, split and unquoted as iptables-restore does.

Source: add_param_to_argv in iptables/xshared.c (1.8.9, held against the tool itself): words are
separated by blanks; a double quote starts a quoted part, which ends the word where it closes, and
inside it a backslash escapes the next character. Elsewhere a backslash is a letter.
"""

from __future__ import annotations

import re

from bpfilter.errors import RulesetRefused

_BLANKS = re.compile(r"[^ \t\n]+")
# A word is letters and quoted parts; it ends at a blank or behind a closing quote.
_WORD = re.compile(
    r'[ \t\n]*(?:([^ \t\n"]*)"((?:[^"\\]|\\.)*)"|([^ \t\n"]+)(?=[ \t\n]|$))', re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PLAIN = re.compile(r"""[^ \t"'\\]+""")
MAX_WORD = 1023


def split(line: str, *, source: str = "-", number: int | None = None) -> list[str]:
    """The words of a line. Raises RulesetRefused for a quote that is never closed.

    iptables-restore takes an unclosed quote to run to the end of the line, line feed included, and
    iptables-save then prints what it cannot read back: refused here.
    """
    return _quoted_words(line, source, number) if '"' in line else _BLANKS.findall(line)


def too_long(words: list[str]) -> str | None:
    """The first word that iptables-restore refuses for its length (over MAX_WORD bytes)."""
    for word in words:
        if len(word) > MAX_WORD or len(word.encode("utf-8", "surrogateescape")) > MAX_WORD:
            return word
    return None


def _quoted_words(line: str, source: str, number: int | None) -> list[str]:
    words: list[str] = []
    line = line.rstrip(" \t\n")
    position = 0
    while position < len(line):
        found = _WORD.match(line, position)
        if found is None:
            raise RulesetRefused(
                "a quote is opened and never closed",
                source=source,
                line=number,
                word=line[position:].lstrip(" \t\n"),
                hint="close the quote on the same line",
            )
        letters, quoted, plain = found.groups()
        words.append(plain if plain is not None else letters + _ESCAPED.sub(r"\1", quoted))
        position = found.end()
    return words


def quote(word: str) -> str:
    """A word in the form that `split` reads back; quoted only where it must be."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def lines_of(text: str) -> list[str]:
    """The lines of iptables-save text, which end with "\\n" alone.

    `str.splitlines` would also split comments and prefixes at characters that people may put there.
    """
    return text.removesuffix("\n").split("\n")
