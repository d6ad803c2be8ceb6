"""Reading and editing the live `filter` tables through the host's own iptables tools.

Works in the network namespace of the calling thread. Every edit is one iptables-restore
transaction: it happens whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bpfilter.errors import RolloutError
from bpfilter.rollout import ours
from bpfilter.rollout.dispatch import Dispatch
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.lexer import lines_of
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.tools import find, no_legacy_tables, run, tool

_WAIT_SECONDS = "10"


@dataclass(frozen=True, slots=True)
class Standing:
    """Ours in one family's `filter` table as it stands, in iptables-save's words.

    `dispatch`: what it was made from, if we know.
    """

    chains: Mapping[str, Sequence[str]]
    heads: Mapping[str, Sequence[str]]
    dispatch: Dispatch | None

    @classmethod
    def of(cls, save: str, dispatch: Dispatch | None = None) -> Standing:
        """Ours in iptables-save text."""
        return cls(ours.contents(save), ours.heads(save), dispatch)


@dataclass(frozen=True, slots=True)
class Tables:
    """One family's tables of one backend in the current network namespace."""

    family: Family
    backend: Backend

    def save(self, *, counters: bool = False) -> str:
        """The text of iptables-save; RolloutError unless it is whole, LiveReadError without it."""
        if self.backend is Backend.LEGACY and no_legacy_tables(self.family):
            return ""
        name = tool(self.family, self.backend, "save")
        code, output, errors = run(name, ["-c"] if counters else [])
        text = output.decode("utf-8", "surrogateescape")
        lines = lines_of(text)
        tables, commits = sum(line.startswith("*") for line in lines), lines.count("COMMIT")
        if code != 0 or tables != commits:
            raise RolloutError(
                f"{name} gave {commits} of {tables} tables, exit status {code}: {errors}",
                hint="run it by hand; rules made by nft(8) in these tables must be removed first",
            )
        return text

    def restore(self, text: str) -> None:
        """Apply iptables-restore text, leaving everything it does not name."""
        name = tool(self.family, self.backend, "restore")
        options = ["--noflush", "-w", _WAIT_SECONDS]
        code, _, errors = run(name, options, text.encode("utf-8", "surrogateescape"))
        if code != 0:
            raise RolloutError(
                f"{name} refused our edit, nothing was changed: {errors}",
                hint="check that the kernel has the mark, MARK and conntrack extensions",
            )

    def install(self, save: str, dispatch: Dispatch, made: Standing | None = None) -> bool:
        """Leave exactly this dispatch in the table, whose present text is given; false if it was.

        `made`: how an earlier one stood; chains that are the same keep their rules' state.
        """
        if made is not None and made == Standing.of(save, dispatch):
            return False
        known = None if made is None else made.chains
        return self._apply(ours.edit(save, dispatch.chains, dispatch.jumps, known))

    def clear(self) -> bool:
        """Remove everything of ours; false if there was nothing."""
        return self._apply(ours.edit(self.save(), {}, ()))

    def leftovers(self) -> ours.Leftovers:
        """What of ours stands in the table now."""
        return ours.leftovers(self.save())

    def _apply(self, text: str) -> bool:
        if text:
            self.restore(text)
        return bool(text)


def all_tables() -> tuple[Tables, ...]:
    """Both families' tables of every backend whose tools are installed."""
    return tuple(
        Tables(family, backend)
        for backend in Backend
        for family in Family
        if find(tool(family, backend, "save")) is not None
    )
