"""Which interfaces programs attach to: where IP itself receives (DESIGN §3.3), and why.

A deployment names interfaces one by one, by shell patterns (`eth*`), or with `auto`: every one that
is up and suitable, but for loopback. Patterns and `auto` are followed as interfaces come and go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pyroute2 import IPRoute

from bpfilter.errors import RolloutError
from bpfilter.rollout import host
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.trouble import Cause, Trouble

AUTO = "auto"
_UP, _LOOPBACK = 0x1, 0x8
_PATTERN = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of this network namespace. `kind`: as `ip -d link` calls it, or `device`.

    `obstacles`: why nothing can be attached; `automatic`: whether `auto` takes it.
    """

    name: str
    index: int
    kind: str
    obstacles: tuple[host.Obstacle, ...]
    automatic: bool

    @property
    def why(self) -> str:
        """What programs do here, in words."""
        if self.obstacles:
            return f"left alone: {self.obstacles[0].what}; {self.obstacles[0].hint}"
        if not self.automatic:
            return "attached if named: it is down"
        if self.kind == "bridge":
            return "attached: IP receives here what comes through all its ports"
        if self.kind in ("bond", "team"):
            return "attached: IP receives here what comes through its members"
        return "attached: IP receives here"


def survey() -> tuple[Interface, ...]:
    """Every interface, by index."""
    with IPRoute() as ipr:
        links = list(ipr.link("dump"))
    return tuple(_interface(link, links) for link in links)


def _interface(link: Any, links: Sequence[Any]) -> Interface:
    name = link.get_attr("IFLA_IFNAME")
    info = link.get_attr("IFLA_LINKINFO")
    loopback = bool(link["flags"] & _LOOPBACK)
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    obstacles = tuple(host.link_findings(name, link, links))
    up = bool(link["flags"] & _UP)
    return Interface(
        name,
        link["index"],
        "loopback" if loopback else kind or "device",
        obstacles,
        up and not loopback and not obstacles,
    )


def follows(wanted: Sequence[str]) -> bool:
    """Whether these words may mean other interfaces tomorrow."""
    return any(word == AUTO or not _PATTERN.isdisjoint(word) for word in wanted)


def resolve(wanted: Sequence[str], found: Sequence[Interface] | None = None) -> Mapping[str, int]:
    """Name → index of what these words mean now; `found` as `survey` gives it.

    RolloutError if a named interface is missing or unsuitable, or nothing is left.
    """
    found = survey() if found is None else found
    by_name = {each.name: each for each in found}
    chosen: dict[str, int] = {}
    for word in wanted:
        if word in by_name or not follows([word]):
            _demand(word, by_name)
            chosen[word] = by_name[word].index
            continue
        for each in found:
            suits = each.automatic if word == AUTO else fnmatchcase(each.name, word)
            if suits and not each.obstacles:
                chosen[each.name] = each.index
    if not chosen:
        raise RolloutError(
            f"no interface to attach to: {', '.join(wanted)}",
            hint="`bpfilter doctor` says what can be attached to where",
        )
    return chosen


def _demand(name: str, by_name: Mapping[str, Interface]) -> None:
    if name not in by_name:
        raise RolloutError(f"there is no interface {name}", hint="see `ip link`")
    for obstacle in by_name[name].obstacles:
        raise RolloutError(obstacle.what, hint=obstacle.hint)


def within(wanted: Sequence[str], scope: Scope) -> Mapping[str, int]:
    """`resolve`, of what a canary's scope leaves."""
    found = resolve(wanted)
    return {name: found[name] for name in scope.attached(tuple(found))}


def changed(wanted: Sequence[str], scope: Scope, links: Mapping[str, int]) -> Trouble | None:
    """Whether patterns mean other interfaces than those attached to (name → index)."""
    if not follows(wanted):
        return None
    now = within(wanted, scope)
    if now == links:
        return None
    news = [f"+{name}" for name in now if name not in links]
    gone = [f"-{name}" for name in links if name not in now]
    return Trouble(f"interfaces changed: {' '.join((*news, *gone))}", Cause.LINKS)
