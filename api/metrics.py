"""The daemon's status as Prometheus metrics (https://prometheus.io/docs/practices/naming/)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from bpfilter.rollout.journal import Stage


def exposition(status: Mapping[str, Any]) -> str:
    """The text that Prometheus scrapes."""
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
    registry.register(_Counted(status))
    return generate_latest(registry).decode()


class _Counted(Collector):
    """Counters that the daemon keeps; they start anew with a new generation."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

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
        return [decided, punted]
