"""What a deciding program rests on, asked of the host: each check gives a trouble or None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bpfilter.compiler.mark import MarkField
from bpfilter.rollout import host
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.tables import Tables
from bpfilter.rollout.trouble import Cause, Trouble


def moved_links(links: Mapping[str, int]) -> Trouble | None:
    """Whether every interface (name → index) is what it was."""
    for name, index in links.items():
        if host.link_index(name) != index:
            return Trouble(f"interface {name} is gone or was renamed", Cause.HOST)
    return None


def unfit_links(links: Iterable[str]) -> Trouble | None:
    """Whether IP itself still receives at every interface: no master, nothing stacked on it."""
    for name in links:
        for obstacle in host.link_obstacles(name):
            return Trouble(obstacle.what, Cause.HOST)
    return None


def drifted(expected: Mapping[Tables, Fingerprint]) -> Trouble | None:
    """Whether all tables are as they were: the operator's rules, and our chains."""
    for tables, fingerprint in expected.items():
        drift = fingerprint.drift(tables.save())
        if drift:
            cause = Cause.RULESET if drift.ruleset else Cause.DISPATCH
            return Trouble(f"{tables.family} iptables-{tables.backend} {drift}", cause)
    return None


def obstacles(mark: MarkField) -> Trouble | None:
    """Whether something on the host stands against marks, or uses our bits."""
    for obstacle in host.host_obstacles():
        return Trouble(obstacle.what, Cause.HOST)
    for use in host.mark_uses():
        if use.bits & mark.mask:
            return Trouble(f"{use.user} uses our bits of the mark", Cause.HOST)
    return None
