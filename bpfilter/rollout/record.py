"""What stands in the kernel, as the journal keeps it: a later daemon adopts it if all is the same.

Only a record whose rules, chains of ours, codes, interfaces and boot equal what is found is worth
anything; whatever differs is undone instead.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfilter.compiler.codes import describe
from bpfilter.compiler.mark import MarkField
from bpfilter.kernel.addresses import LocalRoute
from bpfilter.kernel.program import template_digest
from bpfilter.kernel.routing import Routing
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.program import Program
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.tables import Tables

_NAME = "standing"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Record:
    """One generation that decides: `wholes` are digests of all tables with our chains in them.

    `deadline`: CLOCK_MONOTONIC ns, None if no confirmation is due. `interfaces`: where it stands.
    """

    stage: Stage
    scope: Scope
    mark: MarkField
    interfaces: tuple[str, ...]
    wholes: Mapping[str, str]
    codes: str
    deadline: int | None
    boot: str
    host: str
    """`surroundings` as the program was told them last."""
    template: str
    """Digest of the object file that it was loaded from."""

    @classmethod
    def read(cls, journal: Journal) -> Record | None:
        """What the journal has, if it is of this boot."""
        found = journal.document(_NAME)
        if found is None or found["boot"] != boot_id():
            return None
        return cls(
            Stage(found["stage"]),
            Scope.of(found["scope"]),
            MarkField(*found["mark"]),
            tuple(found["interfaces"]),
            found["wholes"],
            found["codes"],
            found["deadline"],
            found["boot"],
            found.get("host", ""),
            found.get("template", ""),
        )

    def describes(self, prepared: Prepared, narrowed: Prepared, held: Collection[str]) -> bool:
        """Whether this is what stands: the rules, our chains, the codes, the links, in time.

        `narrowed`: `prepared` within the record's scope; `held`: interfaces with a link of ours.
        """
        return (
            sorted(held) == sorted(self.interfaces)
            and wholes(prepared.fingerprints) == self.wholes
            and codes_digest(narrowed) == self.codes
            and (self.deadline is None or time.monotonic_ns() < self.deadline)
        )

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        stage: Stage,
        scope: Scope,
        mark: MarkField,
        expected: Mapping[Tables, Fingerprint],
        program: Program,
        deadline: int | None,
    ) -> Record:
        """Of a program that decides, of what was prepared; `expected`: the tables as they are."""
        return cls(
            stage,
            scope,
            mark,
            tuple(program.links),
            wholes(expected),
            codes_digest(prepared),
            deadline,
            boot_id(),
            surroundings(*program.told),
            template_digest(),
        )

    def write(self, journal: Journal) -> None:
        """Keep it."""
        document: dict[str, Any] = {
            "stage": self.stage,
            "scope": self.scope.document(),
            "mark": [self.mark.mask, self.mark.shift],
            "interfaces": list(self.interfaces),
            "wholes": dict(self.wholes),
            "codes": self.codes,
            "deadline": self.deadline,
            "boot": self.boot,
            "host": self.host,
            "template": self.template,
        }
        journal.put(_NAME, document)


def forget(journal: Journal) -> None:
    """From now on nothing is adopted: it is being undone."""
    journal.put(_NAME, None)


def boot_id() -> str:
    """Changes with every boot of the kernel; the monotonic clock starts anew with it."""
    return _BOOT.read_text().strip()


def wholes(fingerprints: Mapping[Tables, Fingerprint]) -> Mapping[str, str]:
    """Digests of all tables, by family and backend."""
    return {f"{t.family}/{t.backend}": print_.whole for t, print_ in fingerprints.items()}


def surroundings(addresses: frozenset[LocalRoute], routing: Routing) -> str:
    """A digest of what a program knows of the host beside the rules."""
    routes = sorted((str(a.family), a.key, a.kind) for a in addresses)
    devices = sorted((i, d.name, d.known) for i, d in routing.devices.items())
    untrusted = sorted((str(family), why) for family, why in routing.untrusted.items())
    return hashlib.sha256(repr((routes, devices, untrusted)).encode()).hexdigest()


def codes_digest(prepared: Prepared) -> str:
    """What every code means, in words: equal digests mean the same under the same dispatch."""
    flats = {(p.family, c.table, c.chain): (p.ruleset, c.flat) for p, c in prepared.chains()}
    text = [
        f"{code.number} " + describe(*flats[(code.family, code.table, code.chain)], code.function)
        for code in prepared.image.codes
    ]
    return hashlib.sha256("\n".join(text).encode("utf-8", "surrogateescape")).hexdigest()
