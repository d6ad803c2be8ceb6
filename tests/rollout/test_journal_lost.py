"""What undoes a stage does not depend on the journal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfilter.rollout.journal import Journal, JournalLost, Stage
from bpfilter.rollout.teardown import remains
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, entered
from tests.rollout.serving import reached, served
from tests.rollout.test_service import ENFORCE
from tests.rollout.test_stages import load

pytestmark = pytest.mark.kernel


def test_a_journal_that_is_taken_away_ends_the_daemon_and_leaves_nothing(
    net: Net, tmp_path: Path
) -> None:
    """`rm -r` of the state directory, or a full disk: what undoes does not depend on it."""
    tables = load(net, Backend.NFT)
    plain = tables.save().count("BPF-")

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        assert tables.save().count("BPF-") > plain
        shutil.rmtree(tmp_path / "state")
        while True:
            yield

    with pytest.raises(JournalLost, match="cannot be used any more"):
        served(net, tmp_path / "state", ENFORCE, script)
    assert tables.save().count("BPF-") == plain
    with entered(net.fw):
        assert remains() == ()
