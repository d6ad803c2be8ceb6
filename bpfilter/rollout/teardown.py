"""Removing everything of ours from the current network namespace, and proving that it is gone.

Works from what stands there: chains and rules by their names in both backends, programs by their
pinned links and our own clsact filters. The journal is only removed.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bpfilter.rollout import pins
from bpfilter.rollout.asking import ask
from bpfilter.rollout.attached import attached, remove_filter
from bpfilter.rollout.journal import FILE, Journal, is_service, running
from bpfilter.rollout.tables import all_tables

_STOP_SECONDS = 15.0


def stop_daemon(directory: Path) -> int | None:
    """End this namespace's daemon, which rolls back; its process id, or None if there is none.

    A service rolls back and stays.
    """
    found = running(directory)
    if found is None:
        return None
    pid, _ = found
    if is_service(directory):
        ask(directory, "rollback", {})
        return pid
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    while running(directory) is not None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    return pid


def teardown(directory: Path | None = None) -> tuple[str, ...]:
    """Remove what is ours, programs first; says what was removed. Idempotent.

    `directory`: of a journal to remove too; one that a daemon keeps is left alone.
    """
    removed = []
    for path in pins.pinned_links():
        pins.detach_pinned(path)
        removed.append(f"link {path}")
    removed += [f"link {path} of an interface that is gone" for path in pins.prune()]
    for found in attached():
        if found.our_filter:
            remove_filter(found)
            removed.append(str(found))
    for tables in all_tables():
        present = tables.leftovers()
        if tables.clear():
            removed.append(
                f"{len(present.chains)} chains and {len(present.jumps)} rules of"
                f" {tables.family} iptables-{tables.backend}"
            )
    if directory is not None and (directory / FILE).exists() and running(directory) is None:
        Journal(directory).remove()
        removed.append(f"journal {directory}")
    return tuple(removed)


def remains() -> tuple[str, ...]:
    """What of ours stands in this network namespace, by asking the kernel; empty if nothing."""
    tables = (
        f"{name} in {each.family} iptables-{each.backend}"
        for each in all_tables()
        for name in each.leftovers().chains
    )
    links = (f"link {path}" for path in pins.pinned_links())
    filters = (str(found) for found in attached() if found.our_filter)
    return (*links, *filters, *tables)
