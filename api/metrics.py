"""The daemon's status as Prometheus metrics (https://prometheus.io/docs/practices/naming/)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from bpfilter.rollout.journal import Stage
from bpfilter.rollout.trouble import Cause


def exposition(status: Mapping[str, Any], events: Iterable[str] = ()) -> str:
    """The text that Prometheus scrapes; `events`: the kinds of those that the journal keeps."""
    registry = CollectorRegistry()
    running = Gauge("bpfilter_daemon_running", "Whether bpfilterd runs.", registry=registry)
    running.set(status["running"])
    in_force = Gauge(
        "bpfilter_in_force", "Whether programs may decide, or predict, now.", registry=registry
    )
    in_force.set(bool(status.get("in_force")))
    stage = Gauge("bpfilter_stage", "1 at the present stage.", ["stage"], registry=registry)
    for each in Stage:
        stage.labels(each).set(status["stage"] == each)
    confirm = Gauge(
        "bpfilter_confirm_remaining_seconds",
        "Until an unconfirmed stage reverts; absent if none is pending.",
        ["pending"],
        registry=registry,
    )
    if status.get("confirm"):
        confirm.labels("yes").set(status["confirm"]["seconds"])
    registry.register(_Counted(status, Counter(events)))
    return generate_latest(registry).decode()


class _Counted(Collector):
    """Counters that the daemon keeps; they start anew with a new generation."""

    def __init__(self, status: Mapping[str, Any], events: Mapping[str, int]) -> None:
        self._status = status
        self._events = events

    def collect(self) -> list[CounterMetricFamily]:
        decided = CounterMetricFamily(
            "bpfilter_decided_packets", "Packets that the program decided or would decide."
        )
        decided.add_metric([], self._status.get("decided") or 0)
        punted = CounterMetricFamily(
            "bpfilter_punted_packets", "Packets left to iptables.", labels=["reason"]
        )
        for reason, count in (self._status.get("punted") or {}).items():
            punted.add_metric([reason], count)
        compared = self._status.get("comparison") or {}
        judged = CounterMetricFamily(
            "bpfilter_compared_packets", "Predictions that were compared with iptables."
        )
        judged.add_metric([], compared.get("compared", 0))
        unlike = CounterMetricFamily(
            "bpfilter_mismatched_packets", "Packets that iptables judged unlike their prediction."
        )
        unlike.add_metric([], compared.get("mismatches", 0))
        events = CounterMetricFamily("bpfilter_events", "Events of the journal.", labels=["kind"])
        for kind in sorted({*self._events, *Cause}):
            events.add_metric([kind], self._events.get(kind, 0))
        return [decided, punted, judged, unlike, events]
