"""A live ruleset as JSON values: tables, chains and rules in iptables' order."""

from __future__ import annotations

from typing import Any

from bpfilter.ruleset.model import Chain, Counters, Rule, Ruleset
from bpfilter.ruleset.writer import rule_words, write


def ruleset_document(ruleset: Ruleset) -> dict[str, Any]:
    """What `GET /v1/rulesets/{family}` answers."""
    return {
        "family": str(ruleset.family),
        "backend": ruleset.backend and str(ruleset.backend),
        "digest": ruleset.digest,
        "rules": sum(1 for _ in ruleset.rules()),
        "tables": {
            table.name: [_chain(chain) for chain in table.chains.values()]
            for table in ruleset.tables.values()
        },
        "text": printable(write(ruleset)),
    }


def printable(text: str) -> str:
    """Rulesets are bytes; what is no UTF-8 is shown escaped."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _chain(chain: Chain) -> dict[str, Any]:
    return {
        "name": printable(chain.name),
        "policy": chain.policy,
        "counters": _counters(chain.counters),
        "rules": [_rule(rule) for rule in chain.rules],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "number": rule.number,
        "matches": [
            {"name": match.name, "words": [printable(word) for word in match.words]}
            for match in rule.matches
        ],
        "target": [printable(word) for word in rule.target.words],
        "counters": _counters(rule.counters),
        "text": printable(rule_words(rule)),
    }


def _counters(counters: Counters | None) -> dict[str, int] | None:
    return None if counters is None else {"packets": counters.packets, "bytes": counters.bytes}
