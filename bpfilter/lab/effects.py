"""What rules do besides giving static verdicts: log, mark, reject, ask dynamic matches. Pure.

The dispatch repeats such rules word by word in chains of its own, so a rule and its repetitions
together must be passed as often after cutover as the rule alone was before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from bpfilter.ruleset.model import Rule, Ruleset, TargetKind

Words = tuple[str, ...]


def packets_by_words(saved: Ruleset) -> Mapping[Words, int]:
    """Packets counted by rules that do such things, added up over rules of equal words."""
    found: Counter[Words] = Counter()
    for rule in saved.rules():
        if _acts(rule) and rule.counters is not None:
            found[_words(rule)] += rule.counters.packets
    return found


def moved(before: Mapping[Words, int], after: Mapping[Words, int]) -> Mapping[Words, int]:
    """What a run added."""
    return {words: count - before.get(words, 0) for words, count in after.items()}


def differences(
    original: Mapping[Words, int], cutover: Mapping[Words, int]
) -> Iterator[tuple[Words, int, int]]:
    """Original rules that were passed more or less often after cutover: words, before, after."""
    for words, count in original.items():
        if cutover.get(words, 0) != count:
            yield words, count, cutover.get(words, 0)


def _acts(rule: Rule) -> bool:
    """RETURN is left out: in a built-in chain, its repetition names the policy."""
    if rule.target.kind is TargetKind.EXTENSION:
        return True
    asks = any(match.dynamic for match in rule.matches)
    return asks and rule.target.kind is TargetKind.VERDICT and rule.target.name != "RETURN"


def _words(rule: Rule) -> Words:
    return (*(word for match in rule.matches for word in match.words), *rule.target.words)
