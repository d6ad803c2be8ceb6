"""Runs a command under a unit's capabilities, system call filter and address families.

`python -m tests.daemon.confined UNIT COMMAND…`. Where systemd is process 1 it does this itself;
here setpriv(1) and libseccomp do what the unit's lines say (systemd.exec(5)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_ALLOW, _EQUAL = 0x7FFF0000, 4
_EPERM = 0x00050000 | errno.EPERM


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def setting(unit: Path, name: str) -> list[str]:
    """The words of a unit's setting."""
    lines = unit.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}=")]
    return line.partition("=")[2].split()


def calls(names: Sequence[str]) -> Iterator[str]:
    """System calls, groups as systemd-analyze(1) prints them replaced by their members."""
    for name in names:
        if not name.startswith("@"):
            yield name
            continue
        shown = subprocess.run(
            ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
        )
        words = [line.split()[0] for line in shown.stdout.splitlines()[1:] if line.strip()]
        yield from calls([word for word in words if not word.startswith("#")])


def filter_calls(allowed: Sequence[str], families: Sequence[str]) -> None:
    """From now on this process has these system calls, and sockets of these families, only."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_EPERM))
    numbers = {getattr(socket, family) for family in families}
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture
            continue
        if name != "socket":
            assert library.seccomp_rule_add(context, _ALLOW, number, 0) == 0, name
            continue
        for family in numbers:
            equal = _Compare(0, _EQUAL, family, 0)
            added = library.seccomp_rule_add_array(context, _ALLOW, number, 1, ctypes.byref(equal))
            assert added == 0, name
    assert library.seccomp_load(context) == 0


def main() -> None:
    unit, command = Path(sys.argv[1]), sys.argv[2:]
    names = [name.lower().removeprefix("cap_") for name in setting(unit, "CapabilityBoundingSet")]
    bounding = "-all," + ",".join(f"+{name}" for name in names)
    allowed = list(calls(setting(unit, "SystemCallFilter")))
    # setpriv(1) itself needs prctl(2) and capset(2), which @system-service has.
    filter_calls(allowed, setting(unit, "RestrictAddressFamilies"))
    prefix = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={bounding}"]
    os.execvp(prefix[0], [*prefix, *command])


if __name__ == "__main__":
    main()
