"""What tells the program that the kernel's rules are not the plan's any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HOOKS = ("ipt_do_table", "ip6t_do_table")


@dataclass(frozen=True, slots=True)
class Generation:
    """State of the rules in one network namespace; every edit changes it.

    `nft` counts transactions of nf_tables. `legacy` stands for the tables on LOCAL_IN of
    iptables-legacy and ip6tables-legacy. Kernels may hide one or the other (`shows_nft`,
    `shows_legacy`): edits there are noticed only by reading the rules again.
    """

    nft: int
    legacy: tuple[int, int]
    shows_nft: bool = True
    shows_legacy: bool = True


def legacy_hooks() -> Mapping[str, int]:
    """Kernel addresses of the legacy tables' hook functions, by name; absent ones are left out.

    Read anew for every program: modules come, go, and come back elsewhere.
    """
    found = {}
    with Path("/proc/kallsyms").open() as symbols:
        for line in symbols:
            address, _, name = line.split(maxsplit=3)[:3]
            if name in _HOOKS and int(address, 16):
                found[name] = int(address, 16)
    return found
