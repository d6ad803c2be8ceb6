"""One rule's words → matches and a target. Pure; identical matches share one object.

Words that were parsed lately are not parsed again: a ruleset that a daemon reads once more differs
by a rule or two from the one before.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from bpfilter.ruleset import targets
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.matches import dynamic, header
from bpfilter.ruleset.matches.common import BadWord, Option
from bpfilter.ruleset.matches.registry import IMPLICIT, Spec, spec
from bpfilter.ruleset.model import Match, Target

HEADER_FLAGS = {
    "-p": "-p", "--protocol": "-p",
    "-s": "-s", "--src": "-s", "--source": "-s",
    "-d": "-d", "--dst": "-d", "--destination": "-d",
    "-i": "-i", "--in-interface": "-i",
    "-o": "-o", "--out-interface": "-o",
    "-f": "-f", "--fragment": "-f", "--fragments": "-f",
    "-m": "-m", "--match": "-m",
    "-j": "-j", "--jump": "-j",
    "-g": "-g", "--goto": "-g",
    "-c": "-c", "--set-counters": "-c",
    "-v": "-v", "--verbose": "-v",
    "-4": "-4", "--ipv4": "-4", "-6": "-6", "--ipv6": "-6",
}  # fmt: skip
_MATCHES = frozenset({"-p", "-s", "-d", "-i", "-o"})
_WITHOUT_ARGUMENT = frozenset({"-f", "-4", "-6", "-v"})
_OTHER_LONG = ("--insert", "--modprobe", "--set-counters")


@dataclass(slots=True)
class _Open:
    """A match whose options are still being read."""

    name: str
    spec: Spec
    options: list[Option] = field(default_factory=list)


@dataclass(slots=True)
class ParsedRule:
    """A rule before address lists are expanded and it gets its number."""

    headers: list[Match] = field(default_factory=list)
    addresses: list[list[Match]] = field(default_factory=list)
    opened: list[_Open] = field(default_factory=list)
    flag: str = ""
    target: str = ""
    target_words: list[str] = field(default_factory=list)
    takes_options: bool = False
    counters: tuple[int, int] | None = None
    protocol: int = 0
    flags: set[str] = field(default_factory=set)
    users: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one rule's words stand for: `matches` of each rule (address lists give several)."""

    matches: tuple[tuple[Match, ...], ...]
    target: Target
    flags: frozenset[str]
    counters: tuple[int, int] | None


_KEPT = 1 << 14
"""Rules that are remembered, of each family; a longer ruleset is parsed anew each time."""


def parse_rule(
    words: Sequence[str], user_chains: frozenset[str], family: Family, *, lenient: bool = False
) -> Parsed:
    """The rule of these words behind `-A CHAIN`. Raises BadWord."""
    # Only chains that the words name matter: a new one leaves what is remembered as it is.
    return _parse(tuple(words), user_chains.intersection(words), family, lenient)


def forget_rules(most: int) -> None:
    """Let go of what was parsed, if that is more than so many rules: it takes a kilobyte each."""
    if _parse.cache_info().currsize > most:
        for known in (_parse, _header_value, _match):
            known.cache_clear()


@lru_cache(maxsize=_KEPT)
def _parse(
    words: tuple[str, ...], user_chains: frozenset[str], family: Family, lenient: bool
) -> Parsed:
    return _RuleParser(family, lenient).parse(words, user_chains)


class _RuleParser:
    def __init__(self, family: Family, lenient: bool) -> None:
        self.family = family
        self.lenient = lenient

    def parse(self, words: Sequence[str], user_chains: frozenset[str]) -> Parsed:
        rule = ParsedRule(users=user_chains)
        index = 0
        while index < len(words):
            negated = words[index] == "!"
            index += negated
            if index >= len(words):
                raise BadWord("`!` stands before nothing", "!")
            index = self._word(rule, words, index, negated)
        target = self._target(rule, user_chains)
        matches = [self._close(opened, rule.protocol) for opened in rule.opened]
        choices = itertools.product(*rule.addresses)
        rules = tuple((*chosen, *rule.headers, *matches) for chosen in choices)
        return Parsed(rules, target, frozenset(rule.flags), rule.counters)

    def _word(self, rule: ParsedRule, words: Sequence[str], index: int, negated: bool) -> int:
        word = words[index]
        flag = HEADER_FLAGS.get(word)
        if flag is None and word.startswith("-m"):
            return self._header(rule, "-m", ["-m", word[2:]], 0, negated) - 1 + index
        if rule.flag and not flag and word.startswith("-"):
            return self._behind_target(rule, words, index, negated)
        if flag is not None:
            return self._header(rule, flag, words, index, negated)
        if word.startswith("--"):
            return self._option(rule, words, index, negated)
        hint = 'quote values that hold blanks: --comment "two words"'
        raise BadWord("this word stands where an option is expected", word, hint)

    def _header(
        self, rule: ParsedRule, flag: str, words: Sequence[str], index: int, negated: bool
    ) -> int:
        if flag in _WITHOUT_ARGUMENT:
            return self._bare_flag(rule, flag, words, index, negated)
        if flag in rule.flags and flag != "-m":
            raise BadWord("this option can stand once", words[index])
        rule.flags.add(flag)
        if index + 1 >= len(words):
            raise BadWord("the option lacks its argument", words[index])
        value = words[index + 1]
        if flag in _MATCHES:
            if value == "!":
                raise BadWord("`!` stands behind its option", "!", f"write `! {flag} …`")
            self._header_match(rule, flag, value, negated)
            return index + 2
        if negated:
            raise BadWord("`!` cannot stand here", words[index])
        if flag == "-c":
            return self._counters(rule, words, index)
        if flag == "-m":
            name, found = spec(value, self.family)
            if found.family not in (None, self.family):
                raise BadWord(f"this match is not one of {self.family}", value)
            rule.opened.append(_Open(name, found))
        else:
            if rule.flag:
                raise BadWord("a rule has one target", value)
            rule.flag, rule.target = flag, value
            rule.takes_options = value not in targets.VERDICTS and value not in rule.users
        return index + 2

    def _bare_flag(
        self, rule: ParsedRule, flag: str, words: Sequence[str], index: int, negated: bool
    ) -> int:
        if flag == "-f":
            if self.family is Family.IPV6:
                raise BadWord("ip6tables has no -f", "-f", "use -m frag")
            if flag in rule.flags:
                raise BadWord("this option can stand once", words[index])
            rule.flags.add(flag)
            rule.headers.append(header.fragment(negated))
        return index + 1

    def _header_match(self, rule: ParsedRule, flag: str, value: str, negated: bool) -> None:
        if flag == "-p" and not negated:
            rule.protocol = header.protocol_number(value)
        if flag not in ("-s", "-d"):
            rule.headers.append(_header_value(flag, value, negated, self.family))
            return
        parts = value.split(",")
        if len(parts) > 1 and negated:
            raise BadWord("`!` cannot stand before several addresses", value)
        rule.addresses.append([_header_value(flag, part, negated, self.family) for part in parts])

    def _counters(self, rule: ParsedRule, words: Sequence[str], index: int) -> int:
        first = words[index + 1]
        if "," in first:
            packets, _, octets = first.partition(",")
            rest = index + 2
        elif index + 2 < len(words):
            packets, octets, rest = first, words[index + 2], index + 3
        else:
            raise BadWord("-c takes packets and bytes", first)
        if not (packets.isdigit() and octets.isdigit()):
            raise BadWord("-c takes two numbers", first)
        rule.counters = (int(packets), int(octets))
        return rest

    def _owner(self, rule: ParsedRule, word: str) -> tuple[_Open, str] | None:
        """The match that knows an option, newest first, and the option's full name.

        The protocol's own match is opened by an option that only it knows.
        """
        for opened in reversed(rule.opened):
            real = _option_name(word, opened.spec)
            if real is not None:
                return opened, real
        implicit = IMPLICIT.get((rule.protocol, self.family))
        if implicit is None or any(o.name == implicit for o in rule.opened) or _abbreviated(word):
            return None
        _, found = spec(implicit, self.family)
        real = _option_name(word, found)
        if real is None:
            return None
        opened = _Open(implicit, found)
        rule.opened.append(opened)
        return opened, real

    def _option(self, rule: ParsedRule, words: Sequence[str], index: int, negated: bool) -> int:
        name, equals, value = words[index].partition("=")
        owner = self._owner(rule, name)
        if owner is not None and equals and owner[0].spec.options[owner[1]] == 1:
            owner[0].options.append(Option(owner[1], (value,), negated))
            return index + 1
        if owner is not None and not equals:
            return self._take(*owner, words, index, negated)
        flag = _abbreviated(words[index])
        if flag is not None:
            return self._header(rule, flag, words, index, negated)
        for opened in reversed(rule.opened):
            if opened.spec.open:
                return self._take(opened, words[index], words, index, negated)
        raise BadWord(
            "unknown option",
            words[index],
            "name its match with -m before it, or correct the spelling",
        )

    def _take(
        self, opened: _Open, name: str, words: Sequence[str], index: int, negated: bool
    ) -> int:
        arity = opened.spec.options.get(name)
        start = index + 1
        if arity is None:
            end = start
            while end < len(words) and words[end] != "!" and not _is_option(words[end]):
                end += 1
        else:
            end = start + arity
            if end > len(words):
                raise BadWord(f"the option takes {arity} argument(s)", words[index])
        if arity and words[start] == "!" and not (opened.spec.open or opened.name == "comment"):
            raise BadWord("`!` stands behind its option", "!", f"write `! {name} …`")
        opened.options.append(Option(name, tuple(words[start:end]), negated))
        return end

    def _behind_target(
        self, rule: ParsedRule, words: Sequence[str], index: int, negated: bool
    ) -> int:
        """Options behind -j belong to the target, unless a match of the rule knows them."""
        name = words[index].partition("=")[0]
        if not rule.takes_options or self._owner(rule, name) is not None:
            return self._option(rule, words, index, negated)
        if negated:
            raise BadWord("options of a target cannot be negated", words[index])
        taken = targets.option_words(rule.target, words[index])
        end = index + 1
        if taken is None:
            while end < len(words) and words[end] != "!" and not _is_option(words[end]):
                end += 1
        else:
            end = index + taken
            if end > len(words):
                raise BadWord("the option lacks its argument", words[index])
        rule.target_words.extend(words[index:end])
        return end

    def _target(self, rule: ParsedRule, user_chains: frozenset[str]) -> Target:
        if not rule.flag:
            return targets.NO_TARGET
        known = rule.target in user_chains
        if rule.flag == "-g" and not known and not self.lenient:
            raise BadWord("-g goes to a user chain", rule.target, "declare the chain before")
        return targets.make(rule.flag, rule.target, tuple(rule.target_words), user_chains)

    def _close(self, opened: _Open, protocol: int) -> Match:
        needed = protocol if opened.spec.by_protocol else 0
        return _match(opened.name, tuple(opened.options), needed, self.family)


@lru_cache(maxsize=_KEPT)
def _header_value(flag: str, word: str, negated: bool, family: Family) -> Match:
    if flag == "-p":
        return header.protocol(word, negated)
    if flag in ("-i", "-o"):
        return header.interface(flag, word, negated)
    return header.address(flag, word, negated, family)


@lru_cache(maxsize=_KEPT)
def _match(name: str, options: tuple[Option, ...], protocol: int, family: Family) -> Match:
    _, found = spec(name, family)
    words = ["-m", name]
    for option in options:
        words += ["!"] * option.negated + [option.name, *option.values]
    found.check(options, name)
    interpret = found.interpret
    if found.by_protocol is not None:
        interpret = found.by_protocol.get(protocol)
        if interpret is None:
            raise BadWord(
                f"{name} needs a protocol that has ports",
                name,
                "write -p tcp, udp, udplite, sctp or dccp, not negated",
            )
    if interpret is None:
        return Match(name, tuple(words), None, effect=dynamic.effect(name, options))
    meaning = interpret(options, family)
    return Match(name, tuple(words), meaning.alternatives, effect=meaning.effect)


def _option_name(name: str, found: Spec) -> str | None:
    """The option's full name if the match has it; unambiguous beginnings count (getopt_long)."""
    if name in found.options:
        return name
    begins = [option for option in found.options if option.startswith(name)]
    return begins[0] if len(begins) == 1 and len(name) > 3 else None


def _abbreviated(word: str) -> str | None:
    """The header flag that a shortened long option stands for, if it is the only one."""
    if any(name.startswith(word) for name in _OTHER_LONG):
        return None
    flags = {flag for name, flag in HEADER_FLAGS.items() if name.startswith(word)}
    return flags.pop() if len(flags) == 1 and len(word) > 3 else None


def _is_option(word: str) -> bool:
    return word.startswith("--") or word in HEADER_FLAGS
