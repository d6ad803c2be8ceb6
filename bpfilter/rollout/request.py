"""What an operator asks of a rollout."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfilter.rollout.early import EarlyRequest
from bpfilter.rollout.guards import Guards
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
