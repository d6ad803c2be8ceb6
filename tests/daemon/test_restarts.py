"""A restart, an upgrade or a death of the daemon while it enforces changes no verdict."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from bpfilter.rollout.journal import Stage
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import Case, rules
from tests.cases.test_under_traffic import traffic
from tests.daemon.service import cleaned, configure, service
from tests.daemon.test_standing import ENFORCE
from tests.rollout.test_service import kinds

PORT = "-A INPUT -p udp -m udp --dport 5000 -j ACCEPT"
ENDS = {
    "hand-over": ("hand-over", signal.SIGTERM),
    "restart": ("teardown", signal.SIGTERM),
    "death": ("teardown", signal.SIGKILL),
    "upgrade of the package": ("teardown", signal.SIGUSR1),
}


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_every_packet_gets_its_verdict_while_daemons_come_and_go(
    backend: Backend, tmp_path: Path
) -> None:
    decided = 0
    with Case(backend, Family.IPV4) as case, cleaned(case, tmp_path):
        case.tables.restore(rules(PORT))
        with traffic(case) as sending:
            for on_stop, how in ENDS.values():
                configure(tmp_path, ENFORCE, f'on_stop = "{on_stop}"')
                with service(case, tmp_path) as found:
                    found.reaches(Stage.ENFORCE)
                    time.sleep(0.3)
                    decided += case.tables.packets("-A INPUT .* -j BPF-")
                    found.process.send_signal(how)
                    found.process.wait(30)
            with service(case, tmp_path) as found:
                found.until(lambda: {"adopted", "undone"} & set(kinds(found.state)) != set())
                found.reaches(Stage.ENFORCE)
                found.stop()
        for _ in range(200):
            if case.counted()[0] == 2 * sending.sent:
                break
            time.sleep(0.01)
        assert sending.sent > 1000
        assert case.counted() == (2 * sending.sent, sending.sent)
    assert decided > 100
