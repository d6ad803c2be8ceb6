"""Pure work in a forked process, whose memory goes with it; and giving memory back to the kernel.

A proof over ten thousand rules takes a hundred megabytes for two seconds; a daemon that lives for
months should not keep them, nor be the one that the kernel kills if there are not so many.
"""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from bpfilter.errors import RolloutError

_T = TypeVar("_T")


def apart(work: Callable[..., _T], *arguments: Any) -> _T:
    """What `work` returns or raises, computed in a fork of this process.

    It must be pure: nothing that it changes is seen here. RolloutError if its process is killed.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _work(writing, work, arguments)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        data = answer.read()
    _, status = os.waitpid(child, 0)
    if not data:
        name = getattr(work, "func", work).__name__
        raise RolloutError(
            f"the process of {name} ended with status {os.waitstatus_to_exitcode(status)}",
            hint="the kernel's log says whether memory was short; try again with more",
        )
    done, result = pickle.loads(data)
    if not done:
        raise result
    found: _T = result
    return found


def _work(writing: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In the child, which must never return into what its parent was doing."""
    status = 1
    try:
        try:
            answer = True, work(*arguments)
        except Exception as error:
            answer = False, error
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        status = 0
    finally:
        os._exit(status)


def give_back() -> None:
    """Return what the allocator keeps for later to the kernel (malloc_trim(3)); a few ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
