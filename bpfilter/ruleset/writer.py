"""A model as text that iptables-restore accepts; reading it back gives an equal model."""

from __future__ import annotations

from bpfilter.ruleset.lexer import quote
from bpfilter.ruleset.model import Counters, Rule, Ruleset


def rule_words(rule: Rule) -> str:
    """One rule's matches and target, quoted, without `-A CHAIN`."""
    words = [word for match in rule.matches for word in match.words]
    return " ".join(quote(word) for word in (*words, *rule.target.words))


def write(ruleset: Ruleset, counters: bool = False) -> str:
    """The whole ruleset, every table with its COMMIT; empty if it has no table."""
    lines: list[str] = []
    for table in ruleset.tables.values():
        lines.append(f"*{table.name}")
        for chain in table.chains.values():
            policy = chain.policy or "-"
            lines.append(
                f":{chain.name} {policy} {_counters(chain.counters if counters else None)}"
            )
        for chain in table.chains.values():
            for rule in chain.rules:
                prefix = f"{_counters(rule.counters)} " if counters else ""
                lines.append(f"{prefix}-A {chain.name} {rule_words(rule)}".rstrip())
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _counters(counters: Counters | None) -> str:
    return "[0:0]" if counters is None else f"[{counters.packets}:{counters.bytes}]"
