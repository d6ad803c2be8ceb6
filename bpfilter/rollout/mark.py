"""Finding bits of the packet mark that nobody else reads or writes. Pure; see `host` for I/O.

Everything counts, in whatever table or chain it stands: a packet can come back to our dispatch
with a mark that a later hook wrote (transport-mode IPsec). A rule that reads, writes or saves the
whole mark leaves nothing, nor does a rule before `filter` that shows a packet with its mark to
anyone. `-m connmark` reads the connection's mark, into which our bits never get.
Sources: xt_mark.c, xt_connmark.c, xt_TPROXY.c, xt_socket.c, xt_HMARK.c, xt_CT.c, nf_log_syslog.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bpfilter.compiler.mark import MarkField
from bpfilter.errors import RolloutError
from bpfilter.ruleset.model import Rule, Ruleset

WHOLE = 0xFFFFFFFF
WIDTH = 8
_LEAST_WIDTH = 2
_SHOWS_MARK = frozenset({"LOG", "NFLOG", "ULOG", "NFQUEUE", "QUEUE", "AUDIT", "TRACE", "TEE"})
_BEFORE_FILTER = frozenset({"raw", "mangle", "nat"})


@dataclass(frozen=True, slots=True)
class MarkUse:
    """Bits of the mark that somebody uses, and who."""

    bits: int
    user: str


def choose(uses: Iterable[MarkUse], width: int = WIDTH) -> MarkField:
    """The widest free field of at most `width` bits, the highest of those.

    RolloutError, naming the users, if fewer than two adjacent bits are free.
    """
    known = [use for use in uses if use.bits]
    taken = 0
    for use in known:
        taken |= use.bits
    for size in range(width, _LEAST_WIDTH - 1, -1):
        for shift in range(32 - size, -1, -1):
            mask = ((1 << size) - 1) << shift
            if not taken & mask:
                return MarkField(mask, shift)
    culprits = [use.user for use in known if use.bits == WHOLE] or [use.user for use in known]
    raise RolloutError(
        f"no bits of the packet mark are free: {'; '.join(culprits[:5])}",
        hint="give these rules a mask (--mark VALUE/MASK) that leaves eight bits free",
    )


def ruleset_uses(rulesets: Iterable[Ruleset]) -> tuple[MarkUse, ...]:
    """What the rules of all tables of these rulesets use of the mark."""
    return tuple(
        MarkUse(bits, f"{ruleset.family} rule {rule.ref} {why}")
        for ruleset in rulesets
        for rule in ruleset.rules()
        for bits, why in _rule_uses(rule)
    )


def _rule_uses(rule: Rule) -> Iterable[tuple[int, str]]:
    for match in rule.matches:
        reader = _MATCHES.get(match.name)
        if reader is not None:
            yield reader(match.words), f"matches -m {match.name}"
    target = rule.target.name
    writer = _TARGETS.get(target)
    if writer is not None:
        yield writer(rule.target.words), f"has target {target}"
    if target in _SHOWS_MARK and rule.table in _BEFORE_FILTER:
        yield WHOLE, f"shows packets with their mark ({target}) before the filter table"


def _options(words: Sequence[str]) -> dict[str, str]:
    """Long options with the word that follows them."""
    following = (*words[1:], "")
    return {w: value for w, value in zip(words, following, strict=True) if w.startswith("--")}


def _number(text: str, default: int) -> int:
    try:
        return int(text, 0) & WHOLE
    except ValueError:
        return default


def _masked(text: str) -> tuple[int, int]:
    """VALUE[/MASK]; a mask that cannot be read is the whole mark."""
    value, slash, mask = text.partition("/")
    return _number(value, WHOLE), _number(mask, WHOLE) if slash else WHOLE


def _mark_match(words: Sequence[str]) -> int:
    text = _options(words).get("--mark")
    return WHOLE if text is None else _masked(text)[1]


def _socket_match(words: Sequence[str]) -> int:
    return WHOLE if "--restore-skmark" in words else 0


def _mark_target(words: Sequence[str]) -> int:
    options = _options(words)
    for name in ("--set-mark", "--set-xmark"):
        if name in options:
            value, mask = _masked(options[name])
            return value | mask
    for name in ("--or-mark", "--xor-mark"):
        if name in options:
            return _number(options[name], WHOLE)
    if "--and-mark" in options:
        return ~_number(options["--and-mark"], 0) & WHOLE
    return WHOLE


def _connmark_target(words: Sequence[str]) -> int:
    if "--save-mark" not in words and "--restore-mark" not in words:
        return 0
    options = _options(words)
    if "--nfmask" in options:
        return _number(options["--nfmask"], WHOLE)
    return _number(options.get("--mask", ""), WHOLE)


def _tproxy_target(words: Sequence[str]) -> int:
    text = _options(words).get("--tproxy-mark")
    if text is None:
        return 0
    value, mask = _masked(text)
    return value | mask


def _set_target(words: Sequence[str]) -> int:
    return WHOLE if "--map-mark" in words else 0


def _ct_target(words: Sequence[str]) -> int:
    zones = (value for name, value in _options(words).items() if name.startswith("--zone"))
    return WHOLE if "mark" in zones else 0


def _whole(_words: Sequence[str]) -> int:
    return WHOLE


_MATCHES: Mapping[str, Callable[[Sequence[str]], int]] = {
    "mark": _mark_match,
    "socket": _socket_match,
    "bpf": _whole,
}
_TARGETS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "MARK": _mark_target,
    "CONNMARK": _connmark_target,
    "TPROXY": _tproxy_target,
    "HMARK": _whole,
    "SET": _set_target,
    "CT": _ct_target,
}
WRITERS = frozenset({*_TARGETS, "NFQUEUE", "QUEUE"})
"""Targets that may write marks; whoever takes a packet from a queue may do so too."""
