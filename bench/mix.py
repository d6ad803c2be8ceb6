"""The share of packets that the program would leave to the original rules, over a fixed mix.

    .venv/bin/python -m bench.mix FILE… [--packets N] [--chain INPUT|FORWARD]

The mix, per packet (seeded): protocol TCP 78 %, UDP 18 %, ICMP 3 %, other 1 %; connection state
ESTABLISHED 85 %, NEW 12 %, INVALID 2 %, RELATED 1 %; source: half from networks that the rules
name, else any unicast address; destination: for INPUT a local address (one that the rules name,
in half of the packets), for FORWARD any; destination port: half from the ports that the rules
name and the well-known ones, else ephemeral; in-interface: one of those the rules name but `lo`,
or another one. A packet counts as punted when its walk in that state is PUNT, or when its
residual function has no code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.ir import PUNTED, FlatChain, Function, Verdict
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.walk import walk
from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family, Field, field_bits
from bpfilter.ruleset.read import read_file

WELL_KNOWN = (22, 25, 53, 80, 123, 443, 445, 3306, 3389, 5432, 8080)
STATES = ((2, 0.85), (1, 0.12), (8, 0.02), (4, 0.01))


@dataclass(frozen=True)
class Share:
    """Punted packets of a mix, and the rules that punted them, most first."""

    packets: int
    punted: int
    causes: tuple[tuple[str, int], ...]


def named(flat: FlatChain, field: Field) -> list[int]:
    """The lowest and highest values that entries name for a field, without the full range."""
    top = (1 << field_bits(field, flat.family)) - 1
    values = {
        value
        for entry in flat.entries
        for pair in entry.box.get(field, ())
        for value in pair
        if 0 < value < top
    }
    return sorted(values)


class Mix:
    """Draws packets of the documented mix for one chain."""

    def __init__(self, flat: FlatChain, seed: int) -> None:
        self._flat = flat
        self._rng = np.random.default_rng(seed)
        self._names = {field: named(flat, field) for field in Field if field is not Field.STATE}
        self._interfaces = [
            index for index, name in enumerate(flat.space.interfaces) if name != "lo"
        ]

    def _pick(self, values: list[int], otherwise: int) -> int:
        if values and self._rng.random() < 0.5:
            return values[int(self._rng.integers(len(values)))]
        return otherwise

    def _address(self) -> int:
        if self._flat.family is Family.IPV4:
            return int(self._rng.integers(0x01000000, 0xDF000000))
        low = int.from_bytes(self._rng.bytes(14), "big")
        return 0x2001 << 112 | low

    def packet(self) -> tuple[dict[Field, int], int]:
        """One packet and the bit of its connection state."""
        rng = self._rng
        icmp = 1 if self._flat.family is Family.IPV4 else 58
        protocol = int(rng.choice([6, 17, icmp, 47], p=[0.78, 0.18, 0.03, 0.01]))
        packet: dict[Field, int] = {field: 0 for field in Field if field is not Field.STATE}
        packet[Field.PROTOCOL] = protocol
        packet[Field.SOURCE] = self._pick(self._names[Field.SOURCE], self._address())
        packet[Field.DESTINATION] = self._pick(self._names[Field.DESTINATION], self._address())
        packet[Field.IN_INTERFACE] = int(rng.choice(self._interfaces))
        if self._flat.chain != "INPUT":
            packet[Field.OUT_INTERFACE] = int(rng.choice(self._interfaces))
        packet[Field.LENGTH] = int(rng.choice([60, 576, 1500]))
        packet[Field.TTL] = 57
        packet[Field.SOURCE_TYPE] = 1
        packet[Field.DESTINATION_TYPE] = 2 if self._flat.chain == "INPUT" else 1
        if protocol in (6, 17):
            ports = [*self._names[Field.DESTINATION_PORT], *WELL_KNOWN]
            packet[Field.DESTINATION_PORT] = self._pick(ports, int(rng.integers(32768, 61000)))
            packet[Field.SOURCE_PORT] = int(rng.integers(1024, 65536))
        state = int(rng.choice([s for s, _ in STATES], p=[p for _, p in STATES]))
        if protocol == 6:
            packet[Field.TCP_FLAGS] = 0x02 if state == 1 else 0x10
        if protocol == icmp:
            packet[Field.ICMP_TYPE] = (8 if icmp == 1 else 128) << 8
        packet[Field.MASKS] = self._masks(packet)
        return packet, state

    def _masks(self, packet: Mapping[Field, int]) -> int:
        return sum(
            1 << bit
            for bit, (field, masked) in enumerate(self._flat.space.masks)
            if packet[field] & masked.mask == masked.value
        )


def punted_share(plan: ChainPlan, coded: frozenset[Function], packets: int, seed: int) -> Share:
    """Walk a mix through one chain."""
    flat = plan.flat
    mix = Mix(flat, seed)
    drawn = [mix.packet() for _ in range(packets)]
    causes: Counter[str] = Counter()
    functions = functions_of(plan.tables, [packet for packet, _ in drawn])
    for (packet, state), function in zip(drawn, functions, strict=True):
        reached = next(found for mask, found in function.walks if mask & state)
        uniform = function.uniform
        if reached == PUNTED:
            causes[str(flat.entries[walk(flat, packet, state)[1]].rule)] += 1
        elif function not in coded and (uniform is None or uniform.verdict is not Verdict.PUNT):
            causes["no code"] += 1
    return Share(packets, sum(causes.values()), tuple(causes.most_common(5)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--packets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chain", choices=("INPUT", "FORWARD"), default=None)
    options = parser.parse_args()
    for name in options.files:
        try:
            plan = compile_ruleset(read_file(name, kernel_test=False))
        except RulesetRefused as error:
            sys.stderr.write(f"{error}\n")
            continue
        coded = frozenset(code.function for code in assemble([plan]).codes)
        for (table, chain), chain_plan in plan.chains.items():
            if table != "filter" or chain not in (options.chain or "INPUT FORWARD").split():
                continue
            share = punted_share(chain_plan, coded, options.packets, options.seed)
            row = {
                "ruleset": name.rsplit("/", 1)[-1],
                "chain": chain,
                "packets": share.packets,
                "punted": share.punted,
                "share": round(share.punted / share.packets, 4),
                "causes": share.causes,
            }
            print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
