"""Running the iptables tools: where they are, and what they said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bpfilter.errors import LiveReadError
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 60.0


def tool(family: Family, backend: Backend, action: str) -> str:
    """The name of a tool: `tool(IPV6, NFT, "save")` is `ip6tables-nft-save`."""
    base = "iptables" if family is Family.IPV4 else "ip6tables"
    return f"{base}-{backend}-{action}" if action else f"{base}-{backend}"


def find(name: str) -> str | None:
    """The absolute path of a system tool; the caller's PATH has no say."""
    return shutil.which(name, path=PATH)


def run(name: str, arguments: Sequence[str] = (), stdin: bytes = b"") -> tuple[int, bytes, str]:
    """(exit code, output, error text) of a system tool. LiveReadError if it cannot be run."""
    path = find(name)
    if path is None:
        raise LiveReadError(
            f"{name} is not installed", hint="install the distribution's iptables package"
        )
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [path, *arguments],
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LiveReadError(
            f"{name} did not finish within {TIMEOUT:.0f} s",
            hint="another process may hold the xtables lock: see `fuser /run/xtables.lock`",
        ) from None
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "backslashreplace").strip()


def no_legacy_tables(family: Family) -> bool:
    """Whether this network namespace has not one table of the legacy backend; quick.

    False also where that cannot be told.
    """
    name = "ip_tables_names" if family is Family.IPV4 else "ip6_tables_names"
    try:
        return not Path("/proc/thread-self/net", name).read_bytes()
    except OSError:
        return False


def default_backend() -> Backend:
    """The backend that the host's `iptables` command stands for."""
    if find("iptables") is None:
        return Backend.NFT
    return Backend.NFT if b"nf_tables" in run("iptables", ["-V"])[1] else Backend.LEGACY
