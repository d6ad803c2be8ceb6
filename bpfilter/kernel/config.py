"""The program's constants and records: Python's mirror of bpf_templates/config.h and maps.h."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

import numpy as np

from bpfilter.compiler.layout import AXES

SLOTS = 4
MAX_STATES = 5
MAX_MASKS = 8
PUNT_STRIDE = 64
OUTCOME_STRIDE = 16
"""Counts from one CPU to the next."""

_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64


class Mode(IntEnum):
    """How the program finds the chain."""

    FORCED = 0  # it is told
    LIVE_INPUT = 1  # INPUT for unicast to an address of the local table; all else is punted
    EVAL = 2  # it is told, and frames come through `Classifier.run`
    LIVE = 3  # INPUT as LIVE_INPUT, FORWARD for unicast with a route that `kernel.routing` trusts


class Trace(IntEnum):
    """Which records the program writes."""

    OFF = 0
    LAST = 1
    BY_ID = 2  # under the IPv4 ID, or the low 16 bits of the IPv6 flow label


class Early(IntFlag):
    """Bits of `Config.early`."""

    DROPS = 1  # the generation covers the tables on PRE_ROUTING too
    LOOKUP = 2  # the kernel can be asked for conntrack entries


class EarlyNow(IntFlag):
    """Bits of `early` in `RUNTIME`."""

    HOLDS = 1  # the conditions of the early profile hold
    TRACKED = 2  # conntrack is in use: packets with an entry are never dropped early


class Reason(IntEnum):
    """Why a packet was left to the original rules."""

    NONE = 0
    RULE = 1
    NO_CODE = 2
    NO_SLOT = 3
    FRAGMENT = 4
    OPTIONS = 5
    TRUNCATED = 6
    MALFORMED = 7
    EXTENSION = 8
    ETHERTYPE = 9
    LEASE = 10
    GENERATION = 11
    OTHERHOST = 12
    VLAN = 13
    NOT_LOCAL = 14
    TTL = 15
    INTERFACE = 16
    NO_ETHERNET = 17
    LOOKUP = 18
    LONG_WALK = 19
    SCOPE = 20
    SAMPLED = 21
    ROUTE = 22
    RAW = 23
    NOT_EARLY = 24
    TRACKED = 25
    CHANGED = 26


class Axis(ctypes.Structure):
    _fields_ = tuple(
        (name, _u32)
        for name in (
            "base",
            "classes",
            "combine_base",
            "bounds_base",
            "bounds_count",
            "lists_base",
            "row_base",
        )
    )


class Masked(ctypes.Structure):
    _fields_ = (("axis", _u32), ("mask", _u32 * 4), ("value", _u32 * 4))


class SlotConfig(ctypes.Structure):
    _fields_ = (
        *(
            (name, _u32)
            for name in (
                "used",
                "forward",
                "axes_used",
                "axes_combine",
                "axes_last",
                "groups",
                "states",
                "stateful",
                "paired",
                "state_row",
                "ops_base",
                "node_base",
                "counter_base",
                "mask_count",
                "raw_entries",
            )
        ),
        ("plain_node", _u32 * 4),
        ("plain_final", _u32 * 4),
        ("masks", Masked * MAX_MASKS),
        ("axes", Axis * len(AXES)),
    )


class Config(ctypes.Structure):
    _fields_ = (
        *(
            (name, _u32)
            for name in (
                "mode",
                "forced",
                "marking",
                "mark_mask",
                "mark_shift",
                "leased",
                "generation",
                "table_type",
                "trace",
                "counting",
                "shadow",
                "shadow_share",
                "verify_share",
                "scope_share",
                "scope_sources",
                "early",
                "raw_tables",
                "summary_words",
                "summaries",
                "tall",
                "stripes",
                "narrow",
                "narrow_parts",
                "small_ids",
                "iterations",
                "pitch",
                "ids_count",
                "bounds_count",
                "rows_count",
                "parts_count",
                "blocks_count",
                "ops_count",
                "counter_stride",
            )
        ),
        ("legacy_hook4", _u64),
        ("legacy_hook6", _u64),
        ("tracking_hook4", _u64),
        ("tracking_hook6", _u64),
        ("slots", SlotConfig * SLOTS),
    )


RUNTIME = np.dtype(
    [
        ("valid_until", "<u8"),
        ("legacy", "<u8", (2,)),
        ("nft", "<u4"),
        ("cut", "<u4"),
        ("out_class", "<u4", (SLOTS,)),
        ("early", "<u4"),
        ("changed", "<u2"),
        ("edits", "<u2"),
        ("vouched", "<u8"),
    ]
)
GENERATION = np.dtype([("legacy", "<u8", (2,)), ("nft", "<u4"), ("known", "<u4")])
COUNT = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
RECORD = np.dtype(
    [
        ("hits", "<u4"),
        ("slot", "u1"),
        ("reason", "u1"),
        ("outcome", "u1"),
        ("states", "u1"),
        ("code", "<u4"),
        ("node", "<u4"),
        ("length", "<u4"),
        ("mark", "<u4"),
        ("final", "<u4", (MAX_STATES,)),
        ("reserved", "<u4"),
    ]
)
