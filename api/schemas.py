"""What requests hold. Answers are documents of `bpfilter.report` and `bpfilter.rollout.status`."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bpfilter.rollout.goal import Policy
from bpfilter.rollout.journal import Stage
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend

Identity = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Interface = Annotated[str, Field(pattern=r"^[^\s/]{1,15}$")]
Table = Literal["filter", "nat", "mangle", "raw", "security"]
Standing = Literal["live", "enforced", "standing"]
StateName = Literal["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"]
Text = Annotated[str, Field(max_length=16 << 20)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanRequest(_Request):
    """Translate a ruleset: the live one, iptables-save text, or that of a plan that is kept."""

    ruleset: Text | None = None
    plan: Identity | None = None
    family: Family | None = None
    backend: Backend | None = None
    proof_seconds: Annotated[float, Field(ge=0, le=300)] = 30.0


class DiffRequest(_Request):
    """Compare two rulesets: texts, those of plans, or else what `…_state` says.

    `live` are iptables' rules now, `enforced` those that programs decide by or did last,
    `standing` what is enforced, else live.
    """

    old: Text | None = None
    old_plan: Identity | None = None
    old_state: Standing = "live"
    new: Text | None = None
    new_plan: Identity | None = None
    new_state: Standing = "live"
    family: Family | None = None
    backend: Backend | None = None
    seconds: Annotated[float, Field(ge=0.1, le=300)] = 4.0


class ExplainRequest(_Request):
    """One packet in the words of `bpfilter explain`, against live rules, a text or a plan.

    It is named by `protocol`, `source` and `destination`, by the bytes of an Ethernet `frame`
    in hexadecimal digits, or by the id of a `mismatch`.
    """

    protocol: Annotated[str, Field(max_length=40)] | None = None
    source: Annotated[str, Field(max_length=100)] | None = None
    destination: Annotated[str, Field(max_length=100)] | None = None
    frame: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}){14,9000}$")] | None = None
    mismatch: Identity | None = None
    states: Annotated[tuple[StateName, ...], Field(max_length=5)] = ()
    length: Annotated[int, Field(ge=20, le=65535)] | None = None
    ttl: Annotated[int, Field(ge=0, le=255)] | None = None
    tos: Annotated[int, Field(ge=0, le=255)] | None = None
    mac: Annotated[str, Field(max_length=40)] | None = None
    in_interface: Interface | None = None
    out_interface: Interface | None = None
    chain: Literal["INPUT", "FORWARD", "OUTPUT", "PREROUTING"] | None = None
    flags: Annotated[str, Field(max_length=100)] | None = None
    icmp_type: Annotated[str, Field(max_length=100)] | None = None
    ruleset: Text | None = None
    plan: Identity | None = None
    family: Family | None = None
    backend: Backend | None = None

    @model_validator(mode="after")
    def _one_packet(self) -> Self:
        named = (self.protocol, self.source, self.destination)
        if sum((any(named), self.frame is not None, self.mismatch is not None)) != 1:
            raise ValueError(
                "name one packet: by protocol, source and destination, frame, or mismatch"
            )
        if any(named) and not all(named):
            raise ValueError("a packet is protocol, source and destination: give all three")
        return self


class CanaryRequest(_Request):
    """What the canary stage decides; all conditions together."""

    interfaces: tuple[Interface, ...] = ()
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class Commit(_Request):
    """Commit-confirm: without a confirmation by this id in time the kernel itself reverts."""

    id: Identity
    seconds: Annotated[float, Field(ge=1, le=86_400)]


class DeploymentRequest(_Request):
    """The one deployment of this network namespace, as it shall be.

    `plan`: the id of a plan that was looked at; 409 if the live rules are no longer its rules.
    """

    stage: Literal[Stage.OFF, Stage.SHADOW, Stage.CANARY, Stage.ENFORCE]
    interfaces: tuple[Interface, ...] = ()
    plan: Identity | None = None
    commit: Commit | None = None
    canary: CanaryRequest | None = None
    gates: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    waivers: tuple[Annotated[str, Field(max_length=1000)], ...] = ()
    policy: Policy = Policy.FOLLOW
    accept_state_reset: bool = False
    accept_lockout: bool = False
    protect: tuple[Annotated[str, Field(max_length=100)], ...] = ()
