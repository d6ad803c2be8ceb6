"""The plan of one ruleset and the image of what is loaded: the compiler's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bpfilter.compiler.ir import FlatChain, Function, Treatment
from bpfilter.compiler.layout import ChainTables, Transitions
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef, Ruleset


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """One built-in chain, compiled.

    `functions`: the residual functions that packets can meet, most travelled first. A function
    that is missing here is punted by the program.
    """

    table: str
    chain: str
    treatments: Mapping[RuleRef, Treatment]
    flat: FlatChain
    tables: ChainTables
    functions: tuple[Function, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The translation of one family's ruleset. Chains are keyed (table, chain)."""

    ruleset: Ruleset
    chains: Mapping[tuple[str, str], ChainPlan]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def family(self) -> Family:
        return self.ruleset.family


@dataclass(frozen=True, slots=True)
class Code:
    """What a code in the mark stands for. Codes are disjoint per family and chain."""

    number: int
    family: Family
    table: str
    chain: str
    function: Function


@dataclass(frozen=True, slots=True)
class Slot:
    """One chain of an image: its tables, and the trie that ends in codes."""

    plan: ChainPlan
    transitions: Transitions


@dataclass(frozen=True, slots=True)
class Image:
    """All that one generation of the program holds; at most one slot per family and chain."""

    slots: tuple[Slot, ...]
    codes: tuple[Code, ...]
