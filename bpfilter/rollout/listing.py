"""iptables' own listing with the numbers that the rules would have without bpfilter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bpfilter.errors import RolloutError
from bpfilter.rollout.ours import bears_our_name
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.tools import run

_CHAIN = re.compile(r"Chain (\S+) (\(.*)")
_POLICY = re.compile(r"\(policy (\S+) \d+ packets, \d+ bytes\)")
_RULE = re.compile(r" *(\d+) +(\d+) (.*)")
_TRIES = 3


def listed(found: Mapping[str, Any], family: Family, table: str) -> Iterator[str]:
    """`iptables -t TABLE -nvxL`, merged with a document of `counters` and without our chains.

    RolloutError if there is no such table, or the rules change all the time.
    """
    numbers = {
        (rule["chain"], rule["number"]): rule for rule in found["rules"] if rule["table"] == table
    }
    name = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{found['backend']}"
    for _ in range(_TRIES):
        code, output, errors = run(name, ["-t", table, "-nvxL"])
        if code != 0:
            raise RolloutError(
                f"{name} cannot list {table}: {errors}", hint="--table raw, mangle …"
            )
        lines = list(_merged(output.decode("utf-8", "surrogateescape"), numbers))
        if sum(counted for counted, _ in lines) == len(numbers):
            yield from (line for _, line in lines)
            return
    raise RolloutError("the rules change all the time", hint="try again")


def _merged(
    output: str, numbers: Mapping[tuple[str, int], Mapping[str, Any]]
) -> Iterator[tuple[bool, str]]:
    """Lines, and whether each stands for one of the numbers."""
    chain, number, mine = "", 0, False
    for line in output.splitlines():
        if head := _CHAIN.fullmatch(line):
            chain, number = head[1], 0
            mine = bears_our_name(chain)
            policy, rule = _POLICY.fullmatch(head[2]), numbers.get((chain, 0))
            if policy is not None and rule is not None:
                counted = f"{rule['packets']} packets, {rule['bytes']} bytes"
                yield True, f"Chain {chain} (policy {policy[1]} {counted}){_possible(rule)}"
            elif not mine:
                yield False, line
        elif mine:
            continue
        elif (match := _RULE.fullmatch(line)) is None:
            yield False, line
        elif not bears_our_name(match[3].split(" ", 1)[0]):
            number += 1
            rule = numbers.get((chain, number))
            if rule is not None:
                counted = f"{rule['packets']:8d} {rule['bytes']:8d}"
                yield True, f"{counted} {match[3].rstrip()}{_possible(rule)}"


def _possible(rule: Mapping[str, Any]) -> str:
    return f" /* and up to {rule['possible']} by connection state */" if rule["possible"] else ""
