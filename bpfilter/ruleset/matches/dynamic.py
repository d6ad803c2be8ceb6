"""Matches whose answer the BPF hook cannot know exactly, and the state each leaves behind.

A match that stands in no list is taken to have state of its own rule: the safe reading.
Options take the words up to the next option, unless ARITY says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.matches.common import Option
from bpfilter.ruleset.model import StateEffect

INSTANCE = frozenset({"limit", "quota", "connlimit", "statistic", "nfacct", "quota2"})
NAMED = frozenset({"recent", "hashlimit", "set"})
READING = frozenset(
    {
        "ah", "bpf", "cgroup", "cluster", "connbytes", "connlabel", "connmark", "cpu",
        "devgroup", "dst", "eui64", "esp", "frag", "hbh", "helper", "ipcomp", "ipv6header",
        "ipvs", "mark", "mh", "osf", "owner", "physdev", "policy", "rateest", "realm",
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
    "policy": {"--dir": 1, "--pol": 1, "--strict": 0, "--reqid": 1, "--spi": 1, "--proto": 1,
               "--mode": 1, "--tunnel-src": 1, "--tunnel-dst": 1, "--next": 0},
    "ah": {"--ahspi": 1, "--ahlen": 1, "--ahres": 0},
    "esp": {"--espspi": 1},
    "ipcomp": {"--ipcompspi": 1, "--compres": 0},
    "mh": {"--mh-type": 1},
    "socket": {"--transparent": 0, "--nowildcard": 0, "--restore-skmark": 0},
    "owner": {"--socket-exists": 0, "--suppl-groups": 0},
    "limit": {"--limit": 1, "--limit-burst": 1},
}  # fmt: skip


FAMILIES: dict[str, Family] = {
    "realm": Family.IPV4,
    **dict.fromkeys(("dst", "eui64", "frag", "hbh", "ipv6header", "mh", "rt", "srh"), Family.IPV6),
}
"""Matches that one family has alone."""


def effect(name: str, options: Sequence[Option]) -> StateEffect:
    """The state that evaluating a dynamic match leaves behind.

    A set match counts in its set's entries (unless `! --update-counters`), and `socket
    --restore-skmark` rewrites the packet's mark: nothing may evaluate that out of its place.
    """
    if name == "socket" and any(option.name == "--restore-skmark" for option in options):
        return StateEffect.INSTANCE
    if name in NAMED:
        return StateEffect.NAMED
    return StateEffect.NONE if name in READING else StateEffect.INSTANCE
