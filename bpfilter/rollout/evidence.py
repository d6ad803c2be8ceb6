"""A comparison as JSON values, for the daemon's status and for people. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from bpfilter.rollout.comparison import Comparison, Sample

_MOST_SAMPLES = 8


def summary(comparison: Comparison, samples: int = _MOST_SAMPLES) -> Mapping[str, Any]:
    """Totals and causes, how many rules were exercised, and some samples of mismatches."""
    exercised = sum(bool(pairs.counts) for pairs in comparison.rules.values())
    return {
        "mechanism": comparison.mechanism,
        "since": comparison.since,
        "share": comparison.share,
        "predicted": comparison.predicted,
        "compared": comparison.remembered,
        "matches": comparison.matches,
        "mismatches": comparison.mismatches,
        "unseen": {cause.name.lower(): n for cause, n in comparison.unseen.items()},
        "not_comparable": {cause.name.lower(): n for cause, n in comparison.incomparable.items()},
        "rules": comparison.known,
        "exercised": exercised,
        "lost_samples": comparison.lost_samples,
        "samples": [_sample(sample) for sample in comparison.samples[:samples]],
    }


def _sample(sample: Sample) -> Mapping[str, Any]:
    return {
        "id": identity(sample),
        "at": sample.at,
        "family": sample.key.family,
        "rule": str(sample.key.rule),
        "via": [str(ref) for ref in sample.via],
        "in": sample.interface,
        "out": sample.out_interface,
        "state": sample.state.name,
        "predicted": sample.predicted,
        "actual": sample.actual,
        "header": sample.header.hex(),
    }


def identity(sample: Sample) -> str:
    """A name by which people refer to a mismatch: the same in every status that has it."""
    said = f"{sample.at}{sample.key}{sample.interface}{sample.header.hex()}"
    return hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def sentence(found: Mapping[str, Any]) -> str:
    """A summary in one line."""
    causes = {**found["unseen"], **found["not_comparable"]}
    rest = ", ".join(f"{name} {count}" for name, count in causes.items() if count)
    return (
        f"compared {found['compared']} packets by {found['mechanism']}: {found['matches']} as"
        f" predicted, {found['mismatches']} otherwise; {rest or 'none'} not judged;"
        f" {found['exercised']} of {found['rules']} rules exercised"
    )


def describe(sample: Sample) -> str:
    """One mismatch with its packet, for a log line."""
    way = f"{sample.interface} to {sample.out_interface}" if sample.out_interface else ""
    jumps = "".join(f"{ref} > " for ref in sample.via)
    return (
        f"{sample.state.name} on {way or sample.interface}, {jumps}{sample.key.rule}"
        f" said {sample.predicted}, iptables {sample.actual}: {sample.header.hex()}"
    )
