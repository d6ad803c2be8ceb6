"""The chains of a ruleset, the jumps between them, and the traffic on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bpfilter.report.safe import printable
from bpfilter.ruleset.model import Rule, Ruleset, TargetKind


def graph_document(ruleset: Ruleset) -> list[dict[str, Any]]:
    """Per table: its chains with their numbers of rules, and the jumps and gotos between them.

    `packets` is the sum of the counters that the text carries, or None if it carries none. A
    chain's packets are those of its rules; a jump's are those of the rules that make it.
    """
    return [
        {
            "table": table.name,
            "chains": [
                {
                    "chain": printable(chain.name),
                    "policy": chain.policy,
                    "rules": len(chain.rules),
                    "packets": _packets(chain.rules),
                }
                for chain in table.chains.values()
            ],
            "jumps": _jumps([rule for chain in table.chains.values() for rule in chain.rules]),
        }
        for table in ruleset.tables.values()
    ]


def _jumps(rules: list[Rule]) -> list[dict[str, Any]]:
    made: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        if rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO):
            made.setdefault((rule.chain, rule.target.name), []).append(rule)
    return [
        {
            "from": printable(source),
            "to": printable(target),
            "rules": len(by),
            "packets": _packets(by),
        }
        for (source, target), by in made.items()
    ]


def _packets(rules: Sequence[Rule]) -> int | None:
    known = [rule.counters.packets for rule in rules if rule.counters is not None]
    return sum(known) if known else None
