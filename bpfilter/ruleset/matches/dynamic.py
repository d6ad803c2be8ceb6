"""Matches whose answer the BPF hook cannot know exactly, and the state each leaves behind.

A match that stands in neither list is taken to have state of its own rule: the safe reading.
Options take the words up to the next option, unless ARITY says otherwise.
"""

from __future__ import annotations

from bpfilter.ruleset.model import StateEffect

INSTANCE = frozenset({"limit", "quota", "connlimit", "statistic", "nfacct", "quota2"})
NAMED = frozenset({"recent", "hashlimit", "set"})
READING = frozenset(
    {
        "ah", "bpf", "cgroup", "cluster", "connbytes", "connlabel", "connmark", "cpu", "dccp",
        "devgroup", "dst", "eui64", "esp", "frag", "hbh", "helper", "ipcomp", "ipv6header",
        "ipvs", "mark", "mh", "nfacct", "osf", "owner", "physdev", "policy", "rateest", "realm",
        "rpfilter", "rt", "socket", "string", "tcpmss", "time", "u32", "srh", "ipv4options",
    }
)  # fmt: skip

ARITY: dict[str, dict[str, int]] = {
    "set": {"--match-set": 2, "--set": 2, "--return-nomatch": 0, "--update-counters": 0,
            "--update-subcounters": 0},
    "string": {"--string": 1, "--hex-string": 1, "--algo": 1, "--from": 1, "--to": 1,
               "--icase": 0},
    "recent": {"--set": 0, "--rcheck": 0, "--update": 0, "--remove": 0, "--rttl": 0,
               "--rsource": 0, "--rdest": 0, "--reap": 0},
    "mark": {"--mark": 1},
    "connmark": {"--mark": 1},
    "owner": {"--socket-exists": 0, "--suppl-groups": 0},
    "limit": {"--limit": 1, "--limit-burst": 1},
}  # fmt: skip


def effect(name: str) -> StateEffect:
    """The state that evaluating a dynamic match leaves behind."""
    if name in NAMED:
        return StateEffect.NAMED
    return StateEffect.NONE if name in READING - INSTANCE else StateEffect.INSTANCE
