"""Reading and editing the live `filter` tables through the host's own iptables tools.

Works in the network namespace of the calling thread. Every edit is one iptables-restore
transaction: it happens whole or not at all.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from bpfilter.errors import RolloutError
from bpfilter.rollout import ours
from bpfilter.rollout.dispatch import Dispatch
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_WAIT_SECONDS = "10"
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Tables:
    """One family's tables of one backend in the current network namespace."""

    family: Family
    backend: Backend

    def save(self, *, counters: bool = False) -> str:
        """The text of iptables-save; RolloutError unless it is whole."""
        result = self._run("save", ["-c"] if counters else [])
        text = result.stdout.decode("utf-8", "surrogateescape")
        tables = sum(line.startswith("*") for line in text.splitlines())
        commits = text.splitlines().count("COMMIT")
        if result.returncode != 0 or tables != commits:
            raise RolloutError(
                f"{self._tool('save')} gave {commits} of {tables} tables, exit status"
                f" {result.returncode}: {_errors(result)}",
                hint="run it by hand; rules made by nft(8) in these tables must be removed first",
            )
        return text

    def restore(self, text: str) -> None:
        """Apply iptables-restore text, leaving everything it does not name."""
        options = ["--noflush", "-w", _WAIT_SECONDS]
        result = self._run("restore", options, text.encode("utf-8", "surrogateescape"))
        if result.returncode != 0:
            raise RolloutError(
                f"{self._tool('restore')} refused our edit, nothing was changed: {_errors(result)}",
                hint="check that the kernel has the mark, MARK and conntrack extensions",
            )

    def install(self, dispatch: Dispatch) -> bool:
        """Leave exactly this dispatch in the table; false if it already stood there."""
        return self._edit(dispatch)

    def clear(self) -> bool:
        """Remove everything of ours; false if there was nothing."""
        return self._edit(None)

    def leftovers(self) -> ours.Leftovers:
        """What of ours stands in the table now."""
        return ours.leftovers(self.save())

    def _edit(self, dispatch: Dispatch | None) -> bool:
        chains = {} if dispatch is None else dispatch.chains
        jumps = () if dispatch is None else dispatch.jumps
        text = ours.edit(self.save(), chains, jumps)
        if text:
            self.restore(text)
        return bool(text)

    def _tool(self, verb: str) -> str:
        prefix = "iptables" if self.family is Family.IPV4 else "ip6tables"
        return f"{prefix}-{self.backend}-{verb}"

    def _run(
        self, verb: str, options: list[str], data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        tool = self._tool(verb)
        path = shutil.which(tool, path=_PATH)
        if path is None:
            raise RolloutError(f"{tool} is not installed", hint="apt-get install iptables")
        try:
            return subprocess.run(
                [path, *options], input=data, capture_output=True, timeout=_TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired as expired:
            raise RolloutError(
                f"{tool} did not end within {_TIMEOUT_SECONDS} s",
                hint="another process may hold the xtables lock",
            ) from expired


def _errors(result: subprocess.CompletedProcess[bytes]) -> str:
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    return "; ".join(lines[-3:]) or "no message"
