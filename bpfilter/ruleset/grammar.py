"""iptables-restore text → Ruleset. Pure; every refusal names source, line and word.

Source: iptables/iptables-restore.c and the man page. Rulesets are bytes: text that is not UTF-8
is carried through by surrogateescape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.lexer import MAX_WORD, split, too_long
from bpfilter.ruleset.matches.common import BadWord
from bpfilter.ruleset.model import (
    BUILTIN_CHAINS,
    Chain,
    Counters,
    Match,
    Rule,
    Table,
    Target,
    TargetKind,
)
from bpfilter.ruleset.rule_parser import parse_rule
from bpfilter.ruleset.targets import EXTENSIONS

_COUNTERS = re.compile(r"\[([0-9]+):([0-9]+)\]")
_POLICIES = ("ACCEPT", "DROP")
_MAX_CHAIN_NAME = 28
_HINT = "correct the line: iptables(8) and iptables-extensions(8) list what can stand there"


@dataclass(slots=True)
class _Rule:
    line: int
    matches: tuple[Match, ...]
    target: Target
    counters: Counters | None


@dataclass(slots=True)
class _Chain:
    name: str
    policy: str | None
    line: int
    counters: Counters | None = None
    rules: list[_Rule] = field(default_factory=list)


class Refuser:
    """Makes refusals that name this source."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(
        self, message: str, line: int, word: str | None = None, hint: str | None = None
    ) -> RulesetRefused:
        return RulesetRefused(message, source=self.source, line=line, word=word, hint=hint or _HINT)


def parse(
    text: str, family: Family, source: str, *, lenient: bool = False, printed: bool = False
) -> dict[str, Table]:
    """All tables of the text. A table that stands twice counts as iptables-restore has it: last.

    `lenient`: what iptables-nft-restore --test passes although it does not load is taken too: rules
    for and jumps to chains that were never declared, policies that are none.

    `printed`: iptables-save printed the text, maybe with words that iptables-restore cannot read.
    """
    refuse = Refuser(source)
    tables: dict[str, Table] = {}
    current: _TableParser | None = None
    number = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line[0] == "#":
            continue
        if current is None:
            current = _open_table(line, number, family, refuse, lenient, printed)
        elif line == "COMMIT":
            tables[current.name] = current.finish()
            current = None
        else:
            current.line(line, number)
    if current is not None:
        raise refuse(
            f"table {current.name} has no COMMIT",
            number,
            hint="the text may have been cut: save the rules again and compare",
        )
    return tables


def _open_table(
    line: str, number: int, family: Family, refuse: Refuser, lenient: bool, printed: bool
) -> _TableParser:
    if not line.startswith("*"):
        hint = "a ruleset is what iptables-save prints: *table, chains, rules, COMMIT"
        raise refuse("a line stands outside any table", number, line.strip().split(" ")[0], hint)
    name = (line[1:].split() or [""])[0]
    if name not in BUILTIN_CHAINS:
        raise refuse("no such table", number, name, f"tables are {', '.join(BUILTIN_CHAINS)}")
    return _TableParser(name, family, refuse, lenient, printed)


def _counters(word: str) -> Counters | None:
    """`[packets:bytes]`; iptables-restore without -c passes over anything else there."""
    found = _COUNTERS.fullmatch(word)
    return Counters(int(found[1]), int(found[2])) if found else None


class _TableParser:
    def __init__(
        self, name: str, family: Family, refuse: Refuser, lenient: bool, printed: bool
    ) -> None:
        self.name = name
        self._printed = printed
        self._lenient = lenient
        self._family = family
        self._refuse = refuse
        self._chains = {c: _Chain(c, "ACCEPT", 0) for c in BUILTIN_CHAINS[name]}
        self._users: frozenset[str] = frozenset()

    def line(self, line: str, number: int) -> None:
        counters = None
        if line[0] == "[":
            before, bracket, line = line.partition("]")
            if not bracket:
                raise self._refuse("counters are [packets:bytes]", number, before)
            counters = _counters(before + bracket)
        words = split(line, source=self._refuse.source, number=number)
        long = too_long(words) if len(line) > MAX_WORD and not self._printed else None
        if long is not None:
            raise self._refuse(
                f"iptables-restore takes words of at most {MAX_WORD} bytes", number, long[:40]
            )
        if not words:
            raise self._refuse("the line holds no command", number, hint="remove the line")
        # `-4` and `-6` may stand before the command: the line is then for that family alone.
        family_flags = {"-4": "-4", "-6": "-6", "--ipv4": "-4", "--ipv6": "-6"}
        if words[0] in family_flags and len(words) > 2:
            words = [*words[1:3], *words[3:], words[0]]
        command = words[0]
        if command.startswith(":"):
            self._declare(words, number)
        elif command in ("-A", "--append", "-I", "--insert"):
            self._rule(words, number, counters)
        elif command in ("-N", "--new-chain", "-P", "--policy", "-F", "--flush", "-X", "-Z"):
            self._chain_command(words, number)
        else:
            raise self._refuse(
                "unknown command", number, command, "rules begin with -A, chains with a colon"
            )

    def _declare(self, words: list[str], number: int) -> None:
        name = words[0][1:] or (words[1] if len(words) > 1 else "")
        rest = words[1:] if words[0] != ":" else words[2:]
        policy = rest[0] if rest else None
        if policy is None:
            raise self._refuse("the chain lacks a policy", number, name, "user chains have `-`")
        counters = _counters(rest[1]) if len(rest) > 1 and policy != "-" else None
        if name in self._chains and name in BUILTIN_CHAINS[self.name]:
            self._set_policy(name, policy, number)
            self._chains[name].counters = counters
            self._chains[name].line = number
            return
        if policy != "-" and not self._lenient:
            raise self._refuse("only built-in chains have a policy", number, policy)
        self._new(name, number)
        self._chains[name].counters = counters

    def _new(self, name: str, number: int) -> None:
        if not name or len(name.encode("utf-8", "surrogateescape")) > _MAX_CHAIN_NAME:
            raise self._refuse(f"a chain name has 1 to {_MAX_CHAIN_NAME} bytes", number, name)
        if name[0] in "-!":
            raise self._refuse("a chain name cannot begin so", number, name)
        if name in ("ACCEPT", "DROP", "RETURN", "QUEUE") or name in EXTENSIONS:
            raise self._refuse("this name is a target's", number, name, "rename the chain")
        self._chains[name] = _Chain(name, None, number)
        self._users = frozenset(n for n, c in self._chains.items() if c.policy is None)

    def _set_policy(self, name: str, policy: str, number: int) -> None:
        if policy == "-":
            return
        if policy not in _POLICIES and self._lenient:
            policy = "DROP"
        if policy not in _POLICIES:
            raise self._refuse("a policy is ACCEPT or DROP", number, policy)
        self._chains[name].policy = policy

    def _chain_command(self, words: list[str], number: int) -> None:
        command, arguments = words[0], words[1:]
        if command in ("-N", "--new-chain") and len(arguments) == 1:
            if arguments[0] in self._chains and not self._lenient:
                raise self._refuse("the chain exists already", number, arguments[0])
            self._new(arguments[0], number)
        elif command in ("-P", "--policy") and len(arguments) == 2:
            if arguments[0] not in BUILTIN_CHAINS[self.name]:
                if self._lenient:
                    return
                raise self._refuse("only built-in chains have a policy", number, arguments[0])
            self._set_policy(arguments[0], arguments[1], number)
        elif command in ("-F", "--flush") and len(arguments) <= 1:
            if not arguments and any(chain.rules for chain in self._chains.values()):
                raise self._refuse(
                    "-F stands behind rules", number, command, "iptables-nft-restore passes over it"
                )
            for name in arguments or list(self._chains):
                if self._lenient and name not in self._chains:
                    continue
                self._known(name, number).rules.clear()
        elif command == "-X" and len(arguments) <= 1:
            for name in arguments or sorted(self._users):
                self._known(name, number)
                if any(r.target.words[1:2] == (name,) for r in self._all_rules()):
                    raise self._refuse("the chain is in use", number, name)
                del self._chains[name]
            self._users = frozenset(n for n, c in self._chains.items() if c.policy is None)
        elif command != "-Z":
            raise self._refuse("wrong number of arguments", number, command)

    def _all_rules(self) -> Iterator[_Rule]:
        for chain in self._chains.values():
            yield from chain.rules

    def _known(self, name: str, number: int) -> _Chain:
        if name not in self._chains:
            raise self._refuse(
                f"table {self.name} has no such chain",
                number,
                name,
                f"declare it first: `:{name} - [0:0]`",
            )
        return self._chains[name]

    def _rule(self, words: list[str], number: int, counters: Counters | None) -> None:
        if len(words) < 2:
            raise self._refuse("the rule names no chain", number, words[0])
        if self._lenient and words[1] not in self._chains:
            self._new(words[1], number)
        chain = self._known(words[1], number)
        rest = words[2:]
        position = None
        if words[0] in ("-I", "--insert"):
            position = 0
            if rest and rest[0].isdigit():
                position = int(rest[0]) - 1
                rest = rest[1:]
            if position > len(chain.rules) and self._lenient:
                position = len(chain.rules)
            if not 0 <= position <= len(chain.rules):
                raise self._refuse("the chain is not that long", number, words[2])
        other = {"-4", "--ipv4"} if self._family is Family.IPV6 else {"-6", "--ipv6"}
        if other & set(rest):
            return
        try:
            parsed = parse_rule(rest, self._users, self._family, lenient=self._lenient)
            _check_interfaces(chain.name, parsed.flags)
        except BadWord as error:
            raise self._refuse(str(error), number, error.word, error.hint) from None
        self._check_target(parsed.target, number)
        if parsed.counters is not None:
            counters = Counters(*parsed.counters)
        new = [_Rule(number, matches, parsed.target, counters) for matches in parsed.matches]
        at = len(chain.rules) if position is None else position
        chain.rules[at:at] = new

    def _check_target(self, target: Target, number: int) -> None:
        if target.name == "DROP" and self.name == "nat":
            raise self._refuse(
                "table nat does not filter", number, "DROP", "drop in table filter instead"
            )
        known = target.kind is not TargetKind.EXTENSION or target.name in EXTENSIONS
        if known or self._lenient:
            return
        if target.name in self._chains:
            raise self._refuse("a rule cannot jump to a built-in chain", number, target.name)
        if not target.name.isupper():
            raise self._refuse(
                f"table {self.name} has no chain of this name, and no target either",
                number,
                target.name,
                f"declare the chain first: `:{target.name} - [0:0]`",
            )

    def finish(self) -> Table:
        chains = {
            chain.name: Chain(
                chain.name,
                chain.policy,
                tuple(
                    Rule(
                        self.name,
                        chain.name,
                        index,
                        rule.line,
                        rule.matches,
                        rule.target,
                        rule.counters,
                    )
                    for index, rule in enumerate(chain.rules, 1)
                ),
                chain.counters,
                chain.line,
            )
            for chain in self._chains.values()
        }
        return Table(self.name, chains)


def _check_interfaces(chain: str, flags: frozenset[str]) -> None:
    """Built-in chains without an incoming or outgoing interface refuse to name one."""
    if "-i" in flags and chain in ("OUTPUT", "POSTROUTING"):
        raise BadWord(f"packets in {chain} have no incoming interface", "-i", "use -o")
    if "-o" in flags and chain in ("PREROUTING", "INPUT"):
        raise BadWord(f"packets in {chain} have no outgoing interface", "-o", "use -i")
