"""What an operator asks of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bpfilter.kernel.xdp import XdpMode
from bpfilter.rollout.early import EarlyRequest
from bpfilter.rollout.guards import Guards, ProbeCommand
from bpfilter.rollout.lease import LEASE_SECONDS
from bpfilter.rollout.prepare import LIVE_CHAINS
from bpfilter.ruleset.model import Backend


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asks for. `force`: also enforce what is proven incompletely.

    `shadow_share`: of the packets that are compared one by one in shadow. `verify_share`: of the
    decided packets that are left to iptables and compared while enforcing.
    `early`: drop before netfilter what that profile allows.
    """

    interfaces: tuple[str, ...]
    backend: Backend | None = None
    lease_seconds: float = LEASE_SECONDS
    chains: tuple[tuple[str, str], ...] = LIVE_CHAINS
    force: bool = False
    shadow_share: float = 1.0
    verify_share: float = 0.0
    guards: Guards = field(default_factory=Guards)
    early: EarlyRequest | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Request:
        """From the JSON values of `document`; what is absent has its default."""
        backend, early, probe = (document.get(name) for name in ("backend", "early", "probe"))
        default = cls(())
        return cls(
            tuple(document["interfaces"]),
            None if backend is None else Backend(backend),
            document.get("lease_seconds", default.lease_seconds),
            force=document.get("force", False),
            shadow_share=document.get("shadow_share", default.shadow_share),
            verify_share=document.get("verify_share", default.verify_share),
            guards=Guards(probe=None if probe is None else _probe(probe)),
            early=None if early is None else _early(early),
        )

    def document(self) -> dict[str, Any]:
        """All of it as JSON values, but the chains, which are always the live ones."""
        probe, early = self.guards.probe, self.early
        return {
            "interfaces": list(self.interfaces),
            "backend": self.backend,
            "lease_seconds": self.lease_seconds,
            "force": self.force,
            "shadow_share": self.shadow_share,
            "verify_share": self.verify_share,
            "probe": probe
            and {"argv": list(probe.argv), "interval": probe.interval, "timeout": probe.timeout},
            "early": early and {"xdp": dict(early.xdp), "accept_sockets": early.accept_sockets},
        }


def _probe(document: Mapping[str, Any]) -> ProbeCommand:
    return ProbeCommand(tuple(document["argv"]), document["interval"], document["timeout"])


def _early(document: Mapping[str, Any]) -> EarlyRequest:
    modes = {name: XdpMode(mode) for name, mode in document["xdp"].items()}
    return EarlyRequest(modes, document["accept_sockets"])
