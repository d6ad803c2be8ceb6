"""What match modules share: reading options with negation, numbers, ranges and names."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bpfilter.ruleset.fields import Family, Field, Intervals, Term, field_bits
from bpfilter.ruleset.model import Alternatives, StateEffect

ALWAYS: Alternatives = ((),)
NEVER: Alternatives = ()


class BadWord(ValueError):
    """A word that the match does not take; `word` is the offending one."""

    def __init__(self, message: str, word: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.word = word
        self.hint = hint


class Option(NamedTuple):
    """One option of a match as written: `--dport`, its arguments, and whether it is negated."""

    name: str
    values: tuple[str, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a match means: static alternatives, or None and the state it leaves behind."""

    alternatives: Alternatives | None
    effect: StateEffect = StateEffect.NONE


DYNAMIC = Meaning(None)
_NUMBER = re.compile(r"[ \t\n\v\f\r]*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
Interpreter = Callable[[Sequence[Option], Family], Meaning]


def intervals_term(field: Field, values: Intervals, negated: bool, family: Family) -> Term:
    """A term over `values`, or over all others of the field's width when `negated`."""
    bits = field_bits(field, family)
    return Term(field, values.complement(bits) if negated else values)


def conjunction(terms: Sequence[Term]) -> Meaning:
    """All terms at once."""
    return Meaning((tuple(terms),))


def number(word: str, top: int) -> int:
    """A number as strtoul reads it with base 0 (0x…, leading 0 octal), 0 to `top`.

    Source: xtables_strtoul in libxtables/xtables.c. Raises BadWord.
    """
    value = plain_number(word)
    if value is None:
        raise BadWord("a number is expected", word)
    if value > top:
        raise BadWord(f"the number must be 0 to {top}", word)
    return value


def plain_number(word: str) -> int | None:
    """The same without a bound; None if the word is no number."""
    if word.isdecimal() and word.isascii() and word[0] != "0":
        return int(word)
    found = _NUMBER.fullmatch(word)
    if found is None:
        return None
    digits = found[1]
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16)
    return int(digits, 8 if digits[0] == "0" else 10)


def port(word: str, protocol: str) -> int:
    """A port number or a service name of /etc/services (xtables_parse_port)."""
    value = plain_number(word)
    if value is not None and value <= 65535:
        return value
    try:
        return socket.getservbyname(word, protocol)
    except (OSError, ValueError):
        raise BadWord(
            f"no such port or {protocol} service", word, "use the port's number instead"
        ) from None


def port_range(word: str, protocol: str) -> tuple[int, int]:
    """`80`, `80:90`, `:90`, `80:` as an inclusive range, which may be reversed."""
    low, colon, high = word.partition(":")
    if not colon:
        value = port(low, protocol)
        return value, value
    return port(low, protocol) if low else 0, port(high, protocol) if high else 65535


def begins(word: str, names: Sequence[str]) -> int | None:
    """Index of the first name that begins so, in any case, as strncasecmp loops find it."""
    if not word:
        return None
    upper = word.upper()
    return next((i for i, name in enumerate(names) if name.upper().startswith(upper)), None)
