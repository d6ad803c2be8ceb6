"""What the canary stage takes: some interfaces, sources and chains, a share of flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from bpfilter.errors import UsageError
from bpfilter.ruleset.fields import Family

Network = IPv4Network | IPv6Network
_FLOWS = 65536


@dataclass(frozen=True, slots=True)
class Scope:
    """Packets outside take the original rules. Empty tuples, and a share of 1, narrow nothing.

    `share`: of the flows, both directions of a flow alike. `chains`: (family, table, chain).
    """

    interfaces: tuple[str, ...] = ()
    sources: tuple[Network, ...] = ()
    share: float = 1.0
    chains: tuple[tuple[Family, str, str], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(
                f"a share of {self.share:.4g} of the flows makes no sense",
                hint="give more than 0 and at most 100 percent",
            )

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Scope()

    @property
    def threshold(self) -> int:
        """So many of 65536 flow numbers are inside; 0 stands for all of them."""
        return 0 if self.share == 1 else max(round(self.share * _FLOWS), 1)

    def attached(self, interfaces: Sequence[str]) -> tuple[str, ...]:
        """The interfaces to decide at; UsageError if one is not among those of the deployment."""
        for name in self.interfaces:
            if name not in interfaces:
                raise UsageError(
                    f"canary interface {name} is not among those deployed to",
                    hint=f"name it with --interface too, or one of {', '.join(interfaces)}",
                )
        return tuple(n for n in interfaces if not self.interfaces or n in self.interfaces)

    def takes(self, family: Family, table: str, chain: str) -> bool:
        """Whether packets of a chain may be decided."""
        return not self.chains or (family, table, chain) in self.chains

    def __str__(self) -> str:
        parts = [
            f"{self.share:.4%} of the flows".replace(".0000%", "%") if self.share < 1 else "",
            f"from {', '.join(map(str, self.sources))}" if self.sources else "",
            f"at {', '.join(self.interfaces)}" if self.interfaces else "",
            f"in {', '.join(':'.join((f, f'{t}/{c}')) for f, t, c in self.chains)}"
            if self.chains
            else "",
        ]
        return " ".join(part for part in parts if part) or "everything"

    def document(self) -> Mapping[str, Any]:
        """As JSON values."""
        return {
            "interfaces": list(self.interfaces),
            "sources": [str(network) for network in self.sources],
            "share": self.share,
            "chains": [list(chain) for chain in self.chains],
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Scope:
        """From what `document` gave."""
        return cls(
            tuple(document["interfaces"]),
            tuple(ip_network(text) for text in document["sources"]),
            document["share"],
            tuple((Family(f), t, c) for f, t, c in document["chains"]),
        )


def parse_network(text: str) -> Network:
    """A network or address of either family; UsageError otherwise."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no network: {error}", hint="as in 192.0.2.0/24") from None


def parse_chain(text: str) -> tuple[Family, str, str]:
    """`ipv4:filter/INPUT`; UsageError otherwise."""
    family, _, rest = text.partition(":")
    table, _, chain = rest.partition("/")
    if family not in list(Family) or not table or not chain:
        raise UsageError(f"{text!r} names no chain of a family", hint="as in ipv4:filter/INPUT")
    return Family(family), table, chain
