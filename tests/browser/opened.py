"""Debian's Chromium, headless, at `bpfilter dashboard`, in a namespace without any rules."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from bpfilter.compiler.ir import OpKind
from bpfilter.kernel.arrays import MappedArray
from bpfilter.kernel.syscall import OBJ_GET_INFO, bpf
from bpfilter.rollout.teardown import remains
from tests.cli.calling import PROGRAM, ROOT
from tests.rollout.network import MAP_BY_ID, ById, InfoRequest, Net, entered, loaded_objects

CHROMIUM = "/usr/bin/chromium"


@contextmanager
def proxied(net: Net, place: Path) -> Iterator[str]:
    """`bpfilter dashboard` in the peer's namespace: the address that it prints."""
    command = [sys.executable, "-c", PROGRAM, "dashboard", "--socket", str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with entered(net.peer):
        proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert proxy.stdout is not None
        yield proxy.stdout.readline().strip()
    finally:
        proxy.send_signal(signal.SIGINT)
        assert proxy.wait(30) == 0


@contextmanager
def browsing(net: Net, expected: str = "", **context: Any) -> Iterator[Page]:
    """A page; at the end nothing was refused by the policy, and no script failed or asked.

    `expected`: what may be complained of all the same; `context`: of playwright's browser contexts.
    """
    complaints: list[str] = []
    with entered(net.peer), sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.on(
                "console",
                lambda said: complaints.append(said.text) if said.type == "error" else None,
            )
            page.set_default_timeout(30_000)
            yield page
        finally:
            browser.close()
    assert [each for each in complaints if not expected or expected not in each] == []


def apart(work: Callable[[], Any]) -> Any:
    """The result of work in a thread of its own: in the browser's an event loop runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def left_behind(net: Net) -> Any:
    """What of ours is in the firewall's namespace."""
    with entered(net.fw):
        return remains()


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


def spoil(net: Net) -> None:
    """Let the program that runs at the firewall's interface take every ACCEPT for a DROP."""
    spoiled = 0
    for command, number in loaded_objects(net):
        if command != MAP_BY_ID:
            continue
        descriptor = bpf(command, ById(number), "open a map")
        info = _MapInfo()
        request = InfoRequest(descriptor, ctypes.sizeof(info), ctypes.addressof(info))
        bpf(OBJ_GET_INFO, request, "describe a map")
        if info.name == b"ops":
            mapped = MappedArray(descriptor, np.dtype("<u4"), info.entries * info.value_size // 4)
            ops = mapped.cells
            wrong = ops >> 28 == OpKind.ACCEPT
            ops[wrong] = OpKind.DROP << 28
            spoiled += int(wrong.sum())
            del ops
            mapped.close()
        os.close(descriptor)
    assert spoiled
