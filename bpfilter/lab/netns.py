"""Network namespaces without a name: they end with the process, however it ends.

A namespace is held by a descriptor alone, so there is nothing to clean up after SIGKILL. Work in it
is done by the calling thread, which enters and leaves (setns(2) moves one thread only); tools that
it starts meanwhile run inside.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from bpfilter.errors import LabError
from bpfilter.ruleset.tools import PATH, find

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_TIMEOUT = 120.0
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        raise LabError(
            f"{name}: {os.strerror(ctypes.get_errno())}",
            hint="the lab needs root (CAP_SYS_ADMIN) and network namespaces",
        )


class Namespace:
    """A new network namespace; a context manager that lets go of it.

    `environment` is what tools run with: iptables-legacy gets a lock of its own.
    """

    def __init__(self, lock: Path) -> None:
        self.environment: Mapping[str, str] = {
            **os.environ,
            "PATH": PATH,
            "LC_ALL": "C",
            "XTABLES_LOCKFILE": str(lock),
        }
        outside = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", _CLONE_NEWNET)
            try:
                self._fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _call("setns", outside, _CLONE_NEWNET)
        finally:
            os.close(outside)

    @property
    def path(self) -> str:
        """A path that names the namespace to ip(8) while this process holds it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread, and what it starts, works in the namespace."""
        outside = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self._fd, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", outside, _CLONE_NEWNET)
        finally:
            os.close(outside)

    def run(
        self, name: str, arguments: Sequence[str] = (), data: bytes = b"", *, check: bool = True
    ) -> bytes:
        """The output of a system tool run inside; LabError with its words if it fails."""
        path = find(name)
        if path is None:
            raise LabError(f"{name} is not installed", hint=f"install the package of {name}")
        try:
            with self.inside():
                done = subprocess.run(
                    [path, *arguments],
                    input=data,
                    capture_output=True,
                    env=self.environment,
                    timeout=_TIMEOUT,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{name} did not finish within {_TIMEOUT:.0f} s", hint="try a smaller ruleset"
            ) from None
        if check and done.returncode != 0:
            said = done.stderr.decode("utf-8", "backslashreplace").strip()
            raise LabError(
                f"{' '.join([name, *arguments])} failed in the lab: {said or 'no message'}",
                hint="run it by hand in `unshare --net` to see what it takes",
            )
        return done.stdout

    def write(self, path: str, value: int) -> bool:
        """Set a file below /proc/sys/net of the namespace; false if this kernel has none such."""
        with self.inside():
            target = Path("/proc/sys/net") / path
            if not target.exists():
                return False
            target.write_text(str(value))
            return True

    def close(self) -> None:
        """Let go; the kernel removes it and all that is in it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
