"""Packets that a running program is to leave to iptables: bpf_templates/changed.h."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.changed import MAX_CHANGED, Hull
from bpfilter.errors import KernelError
from bpfilter.ruleset.fields import Family

_VERSION = {Family.IPV4: 4, Family.IPV6: 6}

CHANGED = np.dtype(
    [
        ("version", "<u4"),
        ("protocols", "<u4", (2,)),
        ("source_ports", "<u4", (2,)),
        ("destination_ports", "<u4", (2,)),
        ("source", "<u4", (4,)),
        ("source_mask", "<u4", (4,)),
        ("destination", "<u4", (4,)),
        ("destination_mask", "<u4", (4,)),
        ("reserved", "<u4"),
    ]
)


def changed_cells(hulls: Sequence[Hull]) -> npt.NDArray[np.void]:
    """As the map `changed` holds them; KernelError if they are more than it has room for."""
    if len(hulls) > MAX_CHANGED:
        raise KernelError(f"{len(hulls)} hulls of edited rules are too many", hint="plan again")
    cells = np.zeros(len(hulls), CHANGED)
    for cell, hull in zip(cells, hulls, strict=True):
        cell["version"] = _VERSION[hull.family]
        cell["protocols"] = hull.protocols
        cell["source_ports"] = hull.source_ports
        cell["destination_ports"] = hull.destination_ports
        for name, address in (("source", hull.source), ("destination", hull.destination)):
            cell[name], cell[f"{name}_mask"] = (_words(number) for number in address)
    return cells


def _words(address: int) -> tuple[int, ...]:
    """Four words, the most significant first; IPv4 in the last."""
    return tuple(address >> shift & 0xFFFFFFFF for shift in (96, 64, 32, 0))
