"""Looks at the daemon that all visitors share: it is asked as often for many as for one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bpfilter.api.keeper import Keeper
from bpfilter.errors import BpfilterError
from bpfilter.report.rates import Look, rates
from bpfilter.report.shadow import shadow_document
from bpfilter.rollout.status import off_document

_STATUS_SECONDS = 0.9
_DETAIL_SECONDS = 3.0
"""The daemon counts all its rules for a detail."""
_PATIENCE_SECONDS = 1.0
"""With a daemon that is in the middle of a stage change, or hangs."""
_OLDEST = 60.0
"""Rates are not measured over more seconds than that."""
_EVENTS = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known at a moment. `report`: as `shadow_document`, None where nothing is deployed;
    `rates`: as `report.rates.rates`. `revision`: the ETag of the deployment.
    """

    status: Mapping[str, Any]
    revision: str
    events: tuple[Mapping[str, Any], ...]
    report: Mapping[str, Any] | None
    rates: Mapping[str, Any]


class Looks:
    """The newest look at one daemon."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._turn = asyncio.Lock()
        self._at = self._detailed = float("-inf")
        self._seen: Seen | None = None
        self._look: Look | None = None

    async def newest(self, *, fresh: bool = False) -> Seen:
        """What is known, not older than a second (details: three); `fresh`: asked just now."""
        async with self._turn:
            if self._seen is None or fresh or time.monotonic() >= self._at + _STATUS_SECONDS:
                self._seen = await asyncio.to_thread(self._ask, fresh)
                self._at = time.monotonic()
            return self._seen

    def _ask(self, fresh: bool) -> Seen:
        found = self._keeper.deployment()
        events = tuple(asdict(event) for _, event in self._keeper.events()[-_EVENTS:])
        now, last = time.monotonic(), self._seen
        status = {**off_document(), **found.document}
        young = not fresh and now < self._detailed + _DETAIL_SECONDS
        if last is not None and young and _same(last.status, status):
            return Seen(status, found.revision, events, last.report, last.rates)
        self._detailed = now
        look = Look(now, status, self._detail(status), events)
        report: Mapping[str, Any] | None = None
        if look.detail is not None:
            report = shadow_document(status, look.detail)
        elif last is not None and _same(last.status, status):
            report = last.report  # the daemon is too busy to answer
        return Seen(status, found.revision, events, report, self._rates(look))

    def _rates(self, look: Look) -> Mapping[str, Any]:
        """Since the look before, if that is neither too near nor too far."""
        before = self._look
        if before is not None and look.at - before.at < _STATUS_SECONDS and self._seen is not None:
            return self._seen.rates
        self._look = look
        if before is not None and look.at - before.at > _OLDEST:
            before = None
        return rates(before, look)

    def _detail(self, status: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if not status["running"] or status["stage"] == "off":
            return None
        try:
            return self._keeper.detail(_PATIENCE_SECONDS)
        except BpfilterError:  # it ended meanwhile, or is busy with a stage change
            return None


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the details of one status are worth showing with another for a while."""
    return all(old.get(name) == new.get(name) for name in ("stage", "since")) and (
        _mismatches(old) == _mismatches(new)
    )


def _mismatches(status: Mapping[str, Any]) -> int:
    return int((status.get("comparison") or {}).get("mismatches", 0))
