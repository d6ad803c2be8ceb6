"""What match modules share: reading options with negation, numbers, ranges and names."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Option:
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
Interpreter = Callable[[Sequence[Option], Family], Meaning]


def intervals_term(field: Field, values: Intervals, negated: bool, family: Family) -> Term:
    bits = field_bits(field, family)
    return Term(field, values.complement(bits) if negated else values)


def conjunction(terms: Sequence[Term]) -> Meaning:
    return Meaning((tuple(terms),))


def number(word: str, top: int) -> int:
    """A C-style number (decimal, 0x, leading 0 octal) up to `top`."""
    try:
        digits = word.lower()
        if digits.startswith("0x"):
            value = int(digits, 16)
        elif len(digits) > 1 and digits.startswith("0"):
            value = int(digits, 8)
        else:
            value = int(digits, 10)
    except ValueError:
        raise BadWord("a number is expected", word) from None
    if not 0 <= value <= top:
        raise BadWord(f"the number must be 0 to {top}", word)
    return value


def port(word: str, protocol: str) -> int:
    """A port number or a service name of /etc/services."""
    if word.isdigit() or word.lower().startswith("0x"):
        return number(word, 65535)
    try:
        return socket.getservbyname(word, protocol)
    except OSError:
        raise BadWord(
            f"no such port or {protocol} service", word, "use the port's number instead"
        ) from None


def port_range(word: str, protocol: str, separator: str = ":") -> tuple[int, int]:
    """`80`, `80:90`, `:90`, `80:` as an inclusive range; a reversed one is refused."""
    low, found, high = word.partition(separator)
    if not found:
        value = port(low, protocol)
        return value, value
    first = port(low, protocol) if low else 0
    last = port(high, protocol) if high else 65535
    if first > last:
        raise BadWord("the range is reversed", word, f"write {last}:{first}")
    return first, last
