"""Gates between stages: what a comparison must show before packets are decided. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bpfilter.errors import UsageError
from bpfilter.kernel.config import Reason
from bpfilter.rollout.comparison import Comparison, RuleKey
from bpfilter.rollout.waivers import Waiver, parse_rule, unexplained

_N = TypeVar("_N", int, float)
_NOT_THE_PLANS = (Reason.LEASE, Reason.GENERATION, Reason.SCOPE, Reason.SAMPLED)
"""Packets left to iptables for a while or on purpose: they say nothing of how the plan fits."""


@dataclass(frozen=True, slots=True)
class Gates:
    """What is asked for. Shares lie between 0 and 1.

    `seconds` and `packets` in the stage so far; `exercised`: of the rules that can decide, how
    many did; `rules`: these must have; `punted`: at most so many of the packets; `unseen`: of the
    predictions. Unexplained mismatches are never let through.
    """

    seconds: float = 3.0
    packets: int = 0
    exercised: float = 0.0
    rules: tuple[RuleKey, ...] = ()
    punted: float = 1.0
    unseen: float = 1.0


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate's answer: what there is, what is needed, in numbers and in a sentence.

    `hopeless`: waiting does not help.
    """

    name: str
    passed: bool
    have: float
    need: float
    sentence: str
    hopeless: bool = False


def judge(
    gates: Gates,
    comparison: Comparison,
    deciding: Collection[RuleKey],
    waivers: Iterable[Waiver],
    now: float,
) -> Sequence[Gate]:
    """All gates' answers. `deciding`: rules that can decide; `now`: wall-clock seconds."""
    passed = {key for key, pairs in comparison.rules.items() if any(pairs.counts.values())}
    exercised = len(passed & set(deciding)) / len(deciding) if deciding else 1.0
    seconds = now - comparison.since
    looked_at = comparison.predicted
    return (
        _at_least("seconds", seconds, gates.seconds, f"{seconds:.0f} s in the stage"),
        _at_least("packets", looked_at, gates.packets, f"{looked_at} packets looked at"),
        _at_least("exercised", exercised, gates.exercised, f"{exercised:.1%} of the rules decided"),
        *(_named(key, key in passed) for key in gates.rules),
        _mismatches(comparison, waivers, now),
        _at_most("punted", punt_share(comparison), gates.punted, "punted"),
        _at_most("unseen", comparison.unseen_share, gates.unseen, "never seen at their hook"),
    )


def punt_share(comparison: Comparison) -> float:
    """Of the packets looked at, how many the plan leaves to iptables; 0 if there were none."""
    count = sum(n for reason, n in comparison.punted.items() if reason not in _NOT_THE_PLANS)
    return min(count / comparison.predicted, 1.0) if comparison.predicted else 0.0


def _at_least(name: str, have: float, need: float, what: str) -> Gate:
    wanted = f"{need:.1%}" if name == "exercised" else f"{need:.0f}"
    return Gate(name, have >= need, have, need, f"{what}, {wanted} needed")


def _at_most(name: str, have: float, need: float, what: str) -> Gate:
    return Gate(name, have <= need, have, need, f"{have:.2%} {what}, at most {need:.2%} allowed")


def _named(key: RuleKey, seen: bool) -> Gate:
    said = "has decided packets" if seen else "has not decided a packet yet"
    return Gate(f"rule {key.family}:{key.rule}", seen, seen, 1, f"{key.family} {key.rule} {said}")


def _mismatches(comparison: Comparison, waivers: Iterable[Waiver], now: float) -> Gate:
    found = unexplained(comparison, waivers, now)
    count = sum(found.values())
    waived = comparison.mismatches - count
    sentence = f"{count} unexplained mismatches, {waived} waived, by {comparison.mechanism}"
    if found:
        (key, said, was), worst = max(found.items(), key=lambda pair: pair[1])
        sentence += (
            f"; most at {key.family} {key.rule}: {worst} packets predicted {said}, were {was}"
        )
    return Gate("mismatches", not found, count, 0, sentence, hopeless=bool(found))


def parse_gates(words: Iterable[str], gates: Gates | None = None) -> Gates:
    """`seconds=60`, `exercised=0.5`, `rule=ipv4:filter/INPUT/3` …; UsageError otherwise."""
    gates = gates or Gates()
    for word in words:
        name, _, value = word.partition("=")
        try:
            if name == "rule":
                gates = replace(gates, rules=(*gates.rules, parse_rule(value)))
            elif name == "packets":
                gates = replace(gates, packets=_bounded(int(value)))
            elif name == "seconds":
                gates = replace(gates, seconds=_bounded(float(value)))
            elif name == "exercised":
                gates = replace(gates, exercised=_bounded(float(value), 1.0))
            elif name == "punted":
                gates = replace(gates, punted=_bounded(float(value), 1.0))
            elif name == "unseen":
                gates = replace(gates, unseen=_bounded(float(value), 1.0))
            else:
                raise ValueError("no such gate")
        except ValueError as error:
            raise UsageError(
                f"{word!r} is no gate: {error}",
                hint="seconds=S, packets=N, exercised=SHARE, rule=FAMILY:TABLE/CHAIN/NUMBER,"
                " punted=SHARE, unseen=SHARE; shares from 0 to 1",
            ) from None
    return gates


def _bounded(value: _N, most: float = float("inf")) -> _N:
    if not 0 <= value <= most:
        raise ValueError(f"{value} is out of range")
    return value
