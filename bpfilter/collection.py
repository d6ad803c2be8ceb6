"""Pausing Python's cyclic garbage collector around work that makes no garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection inside; what was set before is restored, so calls may nest.

    Parsing, compiling and proving make a great many values and no cycles: looking for some costs
    as much as the work.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
