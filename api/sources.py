"""The rulesets that requests are about: live, sent as text, or those of a plan that is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from bpfilter.api.problems import ApiError
from bpfilter.rollout.enforced import is_enforced, read_enforced
from bpfilter.rollout.live import read_operators
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.tools import default_backend
from bpfilter.ruleset.writer import write


@dataclass(frozen=True, slots=True)
class Kept:
    """A ruleset's text, packed: as objects, rules would take a hundred times as much."""

    family: Family
    backend: Backend | None
    packed: bytes

    @classmethod
    def of(cls, ruleset: Ruleset) -> Kept:
        """Without counters."""
        text = write(ruleset).encode("utf-8", "surrogateescape")
        return cls(ruleset.family, ruleset.backend, zlib.compress(text))

    def ruleset(self, source: str) -> Ruleset:
        """Parsed again; its digest is the same."""
        data = zlib.decompress(self.packed)
        return read_text(data, source=source, family=self.family, backend=self.backend)


Known = Callable[[str], Kept]
"""The ruleset of a plan by its id; ApiError if there is none."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of one ruleset."""

    text: str | None
    plan: str | None
    family: Family | None
    backend: Backend | None
    name: str = "request"

    def read(self, known: Known) -> Ruleset:
        """LiveReadError, RulesetRefused or ApiError where that is impossible."""
        if self.text is not None and self.plan is not None:
            raise ApiError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "validation",
                f"{self.name}: both a text and a plan are given",
                hint="leave one of them out; without both, the live rules are meant",
            )
        if self.plan is not None:
            return known(self.plan).ruleset(f"plan {self.plan}")
        if self.text is not None:
            sent = read_text(self.text, source=self.name, family=self.family, backend=self.backend)
            # As of a file: what does not say its backend is meant for this host's.
            return sent if sent.backend else replace(sent, backend=default_backend())
        return read_operators(self.family or Family.IPV4, self.backend)


@dataclass(frozen=True, slots=True)
class Side:
    """What a request says of one side of a diff; `state`: see `schemas.DiffRequest`."""

    text: str | None
    plan: str | None
    state: str
    name: str

    @property
    def of_host(self) -> bool:
        """Whether it is this host's own: its counters say what the rules met."""
        return self.text is None and self.plan is None

    def read(
        self, family: Family | None, backend: Backend | None, known: Known, at: Path
    ) -> Ruleset:
        """As `Asked.read`; RolloutError where nothing was enforced. `at`: the state directory."""
        enforced = self.state == "enforced" or (self.state == "standing" and is_enforced(at))
        if self.of_host and enforced:
            return read_enforced(at, family or Family.IPV4)
        return Asked(self.text, self.plan, family, backend, self.name).read(known)


def read_sides(
    old: Side, new: Side, family: Family | None, backend: Backend | None, known: Known, at: Path
) -> tuple[Ruleset, Ruleset]:
    """Both sides; where no family is named, that of the side that says one itself holds."""
    if family is None and old.of_host and not new.of_host:
        right = new.read(None, backend, known, at)
        return old.read(right.family, backend, known, at), right
    left = old.read(family, backend, known, at)
    return left, new.read(family or left.family, backend, known, at)
