"""The kernel's messages wake the daemon, so that it need not wait for its next look at the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfilter.rollout import service
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.trouble import Cause
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, call
from tests.rollout.serving import AT_ONCE, reached, served, until
from tests.rollout.test_stages import load

pytestmark = pytest.mark.kernel

ENFORCE = Goal(Stage.ENFORCE, gates=AT_ONCE)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ip rule add fwmark 0xff000000 lookup 9", "uses our bits of the mark"),
        ("ip link add m1 link v1 type macvlan", "m1 (macvlan) is stacked on v1"),
        ("ip link set v1 name wan9", "is gone or was renamed"),
    ],
)
def test_the_daemon_looks_at_once_and_not_at_its_next_tick(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    """Its regular ticks are an hour apart here."""
    monkeypatch.setattr(service, "RENEW_SECONDS", 3600.0)
    load(net, Backend.NFT)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        yield
        call(*command.split())
        yield from until(lambda: bool(suspended(journal)))
        assert said in suspended(journal)[0]

    served(net, tmp_path, ENFORCE, script)


def suspended(journal: Journal) -> list[str]:
    return [event.sentence for event in journal.events() if event.kind == Cause.HOST]
