"""What all tests share: which of them can run here, and a closing word on what did not."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import bpffs

ROOT = Path(__file__).resolve().parent.parent
SHARED_RULESETS = ROOT.parent / "shared" / "rulesets"
GUEST = os.environ.get("BPFILTER_GUEST")
"""The kernel series that `make guests` has booted, and in which these tests run."""
_NEEDS_GUEST = "needs a guest"


def kernel_obstacle() -> str | None:
    """Why tests marked `kernel` cannot run here, or None if they can."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        return "network namespaces cannot be made"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Before workers start, of which none could tell whether another is mounting."""
    if not hasattr(config, "workerinput"):
        bpffs.mount()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one worker, and leave out what cannot run here, with the reason."""
    obstacle = kernel_obstacle()
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(ROOT).as_posix()))
        if obstacle and item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason=f"needs root and a kernel: {obstacle}"))
        wanted = item.get_closest_marker("guest")
        if wanted is not None and GUEST not in wanted.args:
            item.add_marker(pytest.mark.skip(reason=f"{_NEEDS_GUEST}: {' '.join(wanted.args)}"))


@pytest.fixture(scope="session", autouse=True)
def xtables_lock() -> Iterator[None]:
    """Give this process's iptables-legacy a lock of its own: workers run side by side."""
    with tempfile.TemporaryDirectory(prefix="bpfilter-test-") as directory:
        os.environ["XTABLES_LOCKFILE"] = f"{directory}/xtables.lock"
        yield


@pytest.fixture(scope="session")
def shared_rulesets() -> list[Path]:
    """The public rulesets beside the repository, in order; an empty list without them."""
    return sorted(SHARED_RULESETS.glob("*.v[46]"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count = len(sorted(SHARED_RULESETS.glob("*.v[46]")))
    say = terminalreporter.write_line
    if count:
        say(f"../shared is present: its {count} rulesets were used")
    else:
        say("../shared is absent: tests over its public rulesets had nothing to read")
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    obstacle = kernel_obstacle()
    if obstacle:
        left_out = sum("needs root and a kernel" in reason for reason in skipped)
        say(f"{left_out} tests that need root and a kernel did not run: {obstacle}")
    elsewhere = sum(_NEEDS_GUEST in reason for reason in skipped)
    if elsewhere:
        say(f"{elsewhere} tests that need another kernel did not run here: make guests")
