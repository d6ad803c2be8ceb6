"""The systemd units: systemd takes them, and the daemon works under exactly what they allow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bpfilter.rollout.journal import Stage
from bpfilter.ruleset.model import Backend
from tests.daemon.confined import setting
from tests.daemon.service import cleaned, configure, service
from tests.daemon.test_standing import ENFORCE
from tests.rollout.network import Net
from tests.rollout.test_stages import FATES, load, outcome

UNITS = Path(__file__).resolve().parents[2] / "systemd"
UNIT = UNITS / "bpfilterd.service"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    root = tmp_path / "root"
    places = root / "etc/systemd/system"
    places.mkdir(parents=True)
    for name in ("bpfilterd.service", "bpfilterd.socket"):
        shutil.copy(UNITS / name, places)
    for program in ("usr/bin/bpfilterd", "usr/bin/bpfilter", "bin/sh", "bin/kill"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", root / program)
    # Targets and sockets that every unit rests on by itself.
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    words = ["systemd-analyze", "verify", "--man=no", f"--root={root}", "--recursive-errors=no"]
    done = subprocess.run(
        [*words, "bpfilterd.service", "bpfilterd.socket"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_the_service_enforces_under_what_its_unit_allows(backend: Backend, tmp_path: Path) -> None:
    prefix = [sys.executable, "-m", "tests.daemon.confined", str(UNIT)]
    with Net() as net, cleaned(net, tmp_path):
        tables = load(net, backend)
        configure(tmp_path, ENFORCE)
        with service(net, tmp_path, prefix) as found:
            found.ready()
            found.reaches(Stage.ENFORCE)
            assert outcome(net, tables) == (FATES, 0)
            transport = httpx.HTTPTransport(uds=str(found.api))
            with httpx.Client(transport=transport, base_url="http://d", timeout=60) as client:
                assert client.get("/v1/rulesets/ipv4").status_code == 200
                assert client.get("/v1/counters").status_code == 200
                assert client.get("/v1/host").status_code == 200
            status = Path(f"/proc/{found.process.pid}/status").read_text()
            assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status
            found.stop()


def test_what_the_unit_keeps_is_where_the_configuration_expects_it() -> None:
    assert setting(UNIT, "StateDirectory") == ["bpfilterd"]
    assert setting(UNIT, "RuntimeDirectory") == ["bpfilterd"]
    socket = (UNITS / "bpfilterd.socket").read_text()
    assert "ListenStream=/run/bpfilterd/api.sock" in socket
