"""What a deciding program rests on, asked of the host: each check gives a trouble or None."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from bpfilter.compiler.mark import MarkField
from bpfilter.rollout import host, interfaces
from bpfilter.rollout.attached import Attached
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.mark import MarkUse
from bpfilter.rollout.program import Program
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.tables import Tables
from bpfilter.rollout.trouble import Cause, Trouble
from bpfilter.rollout.watch import Event, Kind
from bpfilter.ruleset.model import Backend

_GRAVEST = (Cause.MARKS, Cause.RULESET, Cause.DISPATCH)


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


def links(wanted: Sequence[str], scope: Scope, attached: Mapping[str, int]) -> Trouble | None:
    """Whether the interfaces attached to are still those wanted, and as they were."""
    return (
        moved_links(attached)
        or unfit_links(attached)
        or interfaces.changed(wanted, scope, attached)
    )


def programs(program: Program, marked: bool) -> Trouble | None:
    """Whether ours is where it was, and where marks count no other beside it."""
    if not program.attached():
        return Trouble("our program is no longer attached", Cause.HOST)
    return foreign_programs(program.foreign()) if marked else None


def foreign_programs(foreign: Sequence[Attached]) -> Trouble | None:
    """Whether programs of others stand beside ours."""
    return Trouble(f"foreign {foreign[0]} could forge marks", Cause.HOST) if foreign else None


def noticed(
    events: Iterable[Event],
    links: Mapping[str, int],
    mark: MarkField | None,
    foreign: Callable[[], Sequence[Attached]],
) -> Trouble | None:
    """What the watcher's events can mean for a program at these interfaces, and only that.

    In milliseconds: no rules are read. Without a mark only the interfaces matter.
    """
    events = tuple(events)
    kinds = {event.kind for event in events}
    near = {event.kind for event in events if event.concerns(links.values())}
    found = None
    if Kind.LINK in near:
        found = moved_links(links) or unfit_links(links)
    if found is not None or mark is None:
        return found
    if Kind.TC in near:
        found = foreign_programs(foreign())
    if found is None and kinds & {Kind.LINK, Kind.BRIDGE}:
        found = _first(host.bridge_obstacles())
    if found is None and Kind.XFRM in kinds:
        found = _first(host.xfrm_obstacles()) or _taken(host.xfrm_marks(), mark)
    if found is None and Kind.RULE in kinds:
        found = _taken(host.routing_marks(), mark)
    return found


def read(tables: Iterable[Tables], unedited: Collection[Backend] = ()) -> Mapping[Tables, str]:
    """The texts of all tables but those of `unedited` backends, whose edits the kernel counts."""
    return {each: each.save() for each in tables if each.backend not in unedited}


def drifted(expected: Mapping[Tables, Fingerprint], texts: Mapping[Tables, str]) -> Trouble | None:
    """Whether these tables are as they were: the operator's rules, and our chains."""
    found = []
    for tables, text in texts.items():
        drift = expected[tables].drift(text)
        if drift:
            cause = Cause.RULESET if drift.ruleset else Cause.DISPATCH
            cause = Cause.MARKS if drift.marks else cause
            found.append(Trouble(f"{tables.family} iptables-{tables.backend} {drift}", cause))
    return min(found, key=lambda trouble: _GRAVEST.index(trouble.cause), default=None)


def obstacles(mark: MarkField) -> Trouble | None:
    """Whether something on the host stands against marks, or uses our bits."""
    return _first(host.host_obstacles()) or _taken(host.mark_uses(), mark)


def _first(obstacles: Iterable[host.Obstacle]) -> Trouble | None:
    return next((Trouble(found.what, Cause.HOST) for found in obstacles), None)


def _taken(uses: Iterable[MarkUse], mark: MarkField) -> Trouble | None:
    for use in uses:
        if use.bits & mark.mask:
            return Trouble(f"{use.user} uses our bits of the mark", Cause.HOST)
    return None
