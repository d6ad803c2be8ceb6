"""How to load an image: what the program is, and what it may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from bpfilter.compiler.mark import MarkField
from bpfilter.kernel.addresses import LocalRoute
from bpfilter.kernel.btf import struct_id
from bpfilter.kernel.config import Config, Early, Mode, Trace
from bpfilter.kernel.generation import netfilter_hooks
from bpfilter.kernel.routing import NO_ROUTING, Routing
from bpfilter.ruleset.fields import Family

ITERATIONS = 8192
NOT_EARLY = Early(0)
SHARED = ("runtime", "addresses", "changed")
"""Maps that the other programs of a deployment have in common with the one at the interfaces."""


class Template(StrEnum):
    """Which program an image becomes; the value names its object file and the program in it."""

    CLASSIFIER = "classifier"  # at TC: says what filter would do
    EARLY = "early"  # at TC, before the classifier: drops what `compiler.early` allows
    XDP = "xdp"  # the same at XDP
    OUTPUT = "output"  # at LOCAL_OUT: drops what filter OUTPUT would drop at once


@dataclass(frozen=True, slots=True)
class Options:
    """How to load an image.

    `shadow_share`: of the packets that are remembered to be compared, nothing being decided;
    `verify_share`: of decided packets that are left to iptables and compared. `room`: for packets
    on their way from here to filter. See `kernel.shadow`, which compares.

    `chain`: in modes FORCED and EVAL, FORWARD or any other. `interfaces`: ifindex → name; packets
    of others are punted where a rule asks for it. `out_interface`: the fixed name
    for `-o`; mode LIVE takes it from the route, and all devices from `routing`. `leased`,
    `generation`: decide only under a lease, only while the rules are as set.
    `scope_share`: decide only so many of 65536 flows, both directions alike (0: all);
    `scope_sources`: only packets from these networks (none given: from all).
    `raw_tables`: the generation covers legacy tables that INPUT does not have, as raw.
    `early`: as the early profile needs it, also for a classifier that shares its maps.
    `raw_entries`: of each chain of an early image, see `EarlyChain`. `shared`: maps of another
    program, by name, that this one uses as well. The program of LOCAL_OUT decides if it has a
    `marking`, though it marks nothing, and judges packets that leave by `interfaces` only.
    """

    mode: Mode = Mode.EVAL
    chain: str = "INPUT"
    interfaces: Mapping[int, str] | None = None
    routing: Routing = NO_ROUTING
    out_interface: str = ""
    addresses: Sequence[LocalRoute] = ()
    marking: MarkField | None = None
    trace: Trace = Trace.OFF
    leased: bool = False
    generation: bool = False
    counting: bool = True
    scope_share: int = 0
    scope_sources: tuple[IPv4Network | IPv6Network, ...] = ()
    shadow_share: float = 0.0
    verify_share: float = 0.0
    room: int = 8192
    template: Template = Template.CLASSIFIER
    early: Early = NOT_EARLY
    raw_tables: bool = False
    raw_entries: Mapping[tuple[Family, str], int] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)


def config_of(options: Options) -> Config:
    """The program's constants, but for those that `pack` writes."""
    hooks = netfilter_hooks() if options.generation else {}
    marking = options.marking
    return Config(
        mode=options.mode,
        forced=options.chain == "FORWARD",
        marking=marking is not None,
        mark_mask=marking.mask if marking else 0,
        mark_shift=marking.shift if marking else 0,
        leased=options.leased,
        generation=options.generation,
        table_type=struct_id("xt_table") if options.generation else 0,
        trace=options.trace,
        counting=options.counting,
        scope_share=options.scope_share,
        scope_sources=bool(options.scope_sources),
        shadow=options.shadow_share > 0,
        shadow_share=_share(options.shadow_share),
        verify_share=_share(options.verify_share),
        early=options.early,
        raw_tables=options.raw_tables or bool(options.early),
        iterations=ITERATIONS,
        legacy_hook4=hooks.get("ipt_do_table", 0),
        legacy_hook6=hooks.get("ip6t_do_table", 0),
        tracking_hook4=hooks.get("ipv4_conntrack_in", 0),
        tracking_hook6=hooks.get("ipv6_conntrack_in", 0),
    )


def _share(share: float) -> int:
    """Of 65536 packets; a share that is not 0 is never rounded to 0."""
    return max(round(share * 65536), 1) if share > 0 else 0
