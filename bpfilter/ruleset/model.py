"""The typed model of one family's ruleset: what was written, in the order it was written.

Reading and writing back loses nothing: every match and target keeps its exact words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

from bpfilter.ruleset.fields import Family, Term


class Backend(StrEnum):
    """Which iptables implementation holds the rules; the value is what `--backend` takes."""

    LEGACY = "legacy"
    NFT = "nft"


TABLES = ("raw", "mangle", "nat", "filter", "security")
BUILTIN_CHAINS: Mapping[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


class RuleRef(NamedTuple):
    """Names a rule as `--line-numbers` does; number 0 is the chain's policy."""

    table: str
    chain: str
    number: int

    def __str__(self) -> str:
        return f"{self.table}/{self.chain}/{self.number}"


class StateEffect(IntEnum):
    """What evaluating a dynamic match leaves behind in the kernel."""

    NONE = 0  # reads only: mark, owner, string, set without an update …
    NAMED = 1  # state shared by name: recent, hashlimit. Exact from any copy of the rule
    INSTANCE = 2  # state of this one rule instance: limit, quota, connlimit, statistic, unknown


Alternatives = tuple[tuple[Term, ...], ...]
"""A disjunction of conjunctions whose members exclude each other.

`((),)` always matches, `()` never does."""


@dataclass(frozen=True, slots=True)
class Match:
    """One match of a rule.

    `words` are its words as iptables-restore takes them, quoting removed: `("-s", "10.0.0.0/8")`,
    `("-m", "tcp", "!", "--dport", "22")`. `alternatives` is the static meaning, or None if the
    match is dynamic; it may have STATE terms (the connection state is static within a walk).
    """

    name: str
    words: tuple[str, ...]
    alternatives: Alternatives | None
    header: bool = False
    effect: StateEffect = StateEffect.NONE
    typed: object | None = None

    @property
    def dynamic(self) -> bool:
        return self.alternatives is None


class TargetKind(StrEnum):
    VERDICT = "verdict"  # ACCEPT, DROP, RETURN
    JUMP = "jump"  # -j to a user chain
    GOTO = "goto"  # -g to a user chain
    EXTENSION = "extension"  # LOG, REJECT, MARK …
    NONE = "none"  # no target: counts only


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule does. `words` hold everything from `-j`/`-g` on, quoting removed.

    For extensions: `terminal` is true when the packet never goes on to the next rule (REJECT),
    and `verdicts` are the filter verdicts it may end in. `alters` names packet fields that the
    target rewrites ("ttl", "tos", "mark", "connmark", "length", "address", "all" for unknown ones).
    """

    kind: TargetKind
    name: str
    words: tuple[str, ...]
    terminal: bool = False
    verdicts: frozenset[str] = frozenset()
    alters: frozenset[str] = frozenset()
    effect: StateEffect = StateEffect.NONE


@dataclass(frozen=True, slots=True)
class Counters:
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One `-A` line. `line` counts from 1 in the source; `number` as `--line-numbers`."""

    table: str
    chain: str
    number: int
    line: int
    matches: tuple[Match, ...]
    target: Target
    counters: Counters | None = None

    @property
    def ref(self) -> RuleRef:
        return RuleRef(self.table, self.chain, self.number)

    @property
    def comment(self) -> str | None:
        for match in self.matches:
            if match.name == "comment":
                return match.words[-1]
        return None


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; `policy` is None for user chains."""

    name: str
    policy: str | None
    rules: tuple[Rule, ...]
    counters: Counters | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    chains: Mapping[str, Chain]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All tables of one family. `source` names where it came from, for messages.

    `digest` is a SHA-256 over the counter-free canonical text: equal digests mean equal rules.
    `family_reason` says why the family was taken to be what it is.
    """

    family: Family
    backend: Backend | None
    tables: Mapping[str, Table]
    source: str = "-"
    digest: str = ""
    family_reason: str = ""
    warnings: tuple[str, ...] = field(default=())

    def rules(self) -> Iterator[Rule]:
        for table in self.tables.values():
            for chain in table.chains.values():
                yield from chain.rules

    def rule(self, ref: RuleRef) -> Rule:
        return self.tables[ref.table].chains[ref.chain].rules[ref.number - 1]
