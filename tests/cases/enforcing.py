"""bpfilter in the enforce stage on v1 of a test's firewall namespace, with its public pieces."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfilter.rollout.journal import Journal
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, entered

LEASE_SECONDS = 30.0
"""Long enough for a scenario: nothing renews it meanwhile."""


class Enforced:
    """A namespace in which the program decides."""

    def __init__(self, net: Net, backend: Backend, family: Family, rollout: Rollout) -> None:
        self._net = net
        self._tables = net.iptables(backend, family)
        self.rollout = rollout

    def decided(self) -> int:
        """How many packets came to our dispatch with a code."""
        return self._tables.packets("-A (INPUT|FORWARD) .* -j BPF-")

    def tick(self) -> str | None:
        """What the daemon does every second."""
        with entered(self._net.fw):
            return self.rollout.tick()


@contextmanager
def enforcing(
    net: Net, backend: Backend, family: Family, *, lease_seconds: float = LEASE_SECONDS
) -> Iterator[Enforced]:
    """The enforce stage, rolled back at the end. RolloutError if it is refused."""
    request = Request(("v1",), backend, lease_seconds)
    with tempfile.TemporaryDirectory(prefix="bpfilter-case-") as directory:
        journal = Journal(Path(directory) / "state")
        with entered(net.fw):
            rollout = Rollout(request, journal, lambda _line: None)
        try:
            with entered(net.fw):
                rollout.shadow()
                rollout.enforce()
            yield Enforced(net, backend, family, rollout)
        finally:
            with entered(net.fw):
                rollout.rollback()
            journal.remove()
