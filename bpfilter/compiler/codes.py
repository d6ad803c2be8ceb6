"""Numbers for residual functions: what the program writes into the mark field.

A code is content-stable (derived from what the function does, in words) and disjoint per family
and chain. Number 0 means "no decision".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from bpfilter.compiler.ir import FlatChain, Function, Verdict, Walk
from bpfilter.compiler.plan import ChainPlan, Code
from bpfilter.compiler.scope import closure
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Rule, Ruleset

CODES = 256


def describe(ruleset: Ruleset, flat: FlatChain, function: Function) -> str:
    """What a function does, independent of positions and numbers in the ruleset."""

    def walk_text(walk: Walk) -> str:
        parts = []
        for index in walk.items:
            item = flat.items[index]
            rule = ruleset.rule(item.rule)
            parts.append("\x1f".join([item.kind, *_words(rule)]))
            if item.chain is not None:
                for copied in closure(ruleset.tables[flat.table], item.chain):
                    parts.extend("\x1f".join([copied.name, *_words(r)]) for r in copied.rules)
        return "\x1e".join([*parts, walk.verdict or "END"])

    walks = "\x1d".join(f"{mask}:{walk_text(walk)}" for mask, walk in function.walks)
    return f"{flat.family}\x1c{flat.table}\x1c{flat.chain}\x1c{walks}"


def _words(rule: Rule) -> list[str]:
    return [*(word for match in rule.matches for word in match.words), *rule.target.words]


def assign(plans: Sequence[tuple[Ruleset, ChainPlan]], space: int = CODES) -> tuple[Code, ...]:
    """Codes for as many functions as fit in `space`; each plan's most travelled first.

    Functions that are PUNT in every state need none. The result is ordered by number.
    """
    wanted: list[tuple[int, bytes, Family, ChainPlan, Function]] = []
    for ruleset, plan in plans:
        for rank, function in enumerate(plan.functions):
            uniform = function.uniform
            if uniform is not None and uniform.verdict is Verdict.PUNT:
                continue
            digest = hashlib.sha256(
                describe(ruleset, plan.flat, function).encode("utf-8", "surrogateescape")
            ).digest()
            wanted.append((rank, digest, plan.flat.family, plan, function))
    wanted.sort(key=lambda entry: entry[:2])
    taken: dict[int, Code] = {}
    for _, digest, family, plan, function in sorted(wanted[: space - 1], key=lambda w: w[1]):
        number = _free(digest, taken, space)
        taken[number] = Code(number, family, plan.table, plan.chain, function)
    return tuple(taken[number] for number in sorted(taken))


def _free(digest: bytes, taken: Mapping[int, Code], space: int) -> int:
    number = int.from_bytes(digest[:8], "big") % (space - 1) + 1
    while number in taken:
        number = number % (space - 1) + 1
    return number
