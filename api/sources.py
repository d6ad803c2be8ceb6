"""The rulesets that requests are about: live, sent as text, or those of a plan that is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from bpfilter.api.problems import ApiError
from bpfilter.rollout.live import read_operators
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
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
            return read_text(self.text, source=self.name, family=self.family, backend=self.backend)
        return read_operators(self.family or Family.IPV4, self.backend)
