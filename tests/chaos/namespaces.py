"""Working in another network namespace, from any thread.

pyroute2's `pushns` keeps one stack for all threads and takes the main thread's namespace for the
caller's; with senders in threads of their own that would mix them up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import netns


@contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread works in a named network namespace."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.setns(name, flags=0)
        yield
    finally:
        netns.setns(here)
        os.close(here)
