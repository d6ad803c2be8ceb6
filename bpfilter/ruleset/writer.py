"""A model as text that iptables-restore accepts; reading it back gives an equal model."""

from __future__ import annotations

from bpfilter.ruleset.lexer import quote
from bpfilter.ruleset.model import Counters, Rule, Ruleset


def rule_words(rule: Rule) -> str:
    """One rule's matches and target, quoted, without `-A CHAIN`."""
    return _rule_text(rule, {})


def _rule_text(rule: Rule, seen: dict[int, str]) -> str:
    """`seen`: texts by identity of their words; rules share matches, so most are there."""
    parts = []
    for words in [match.words for match in rule.matches] + [rule.target.words]:
        text = seen.get(id(words))
        if text is None:
            text = seen[id(words)] = " ".join(map(quote, words))
        if text:
            parts.append(text)
    return " ".join(parts)


def write(ruleset: Ruleset, counters: bool = False) -> str:
    """The whole ruleset, every table with its COMMIT; empty if it has no table."""
    lines: list[str] = []
    seen: dict[int, str] = {}
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
                lines.append(f"{prefix}-A {chain.name} {_rule_text(rule, seen)}".rstrip())
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _counters(counters: Counters | None) -> str:
    return "[0:0]" if counters is None else f"[{counters.packets}:{counters.bytes}]"
