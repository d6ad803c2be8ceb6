"""Targets: what each does to the packet and to its way through the rules.

Sources: iptables-extensions(8), net/netfilter/xt_*.c. A target that is not listed is taken to
change anything and to have state of its own: packets that reach it are punted.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpfilter.ruleset.model import StateEffect, Target, TargetKind

VERDICTS = ("ACCEPT", "DROP", "RETURN")
_BOTH = frozenset({"ACCEPT", "DROP"})
_DROP = frozenset({"DROP"})


@dataclass(frozen=True, slots=True)
class Traits:
    terminal: bool = False
    verdicts: frozenset[str] = frozenset()
    alters: frozenset[str] = frozenset()
    effect: StateEffect = StateEffect.NONE


def _alters(*what: str, terminal: bool = False) -> Traits:
    return Traits(terminal, frozenset({"ACCEPT"}) if terminal else frozenset(), frozenset(what))


_NAT = _alters("address", terminal=True)
EXTENSIONS: dict[str, Traits] = {
    "REJECT": Traits(True, _DROP),
    "LOG": Traits(),
    "NFLOG": Traits(),
    "ULOG": Traits(),
    "TRACE": Traits(),
    "AUDIT": Traits(),
    "NOTRACK": Traits(),
    "CT": Traits(),
    "CLASSIFY": _alters("priority"),
    "MARK": _alters("mark"),
    "CONNMARK": _alters("mark", "connmark"),
    "CONNSECMARK": _alters("secmark"),
    "SECMARK": _alters("secmark"),
    "CHECKSUM": Traits(),
    "SET": Traits(alters=frozenset({"mark"}), effect=StateEffect.NAMED),
    "TCPMSS": Traits(False, _DROP, frozenset({"length"})),
    "TCPOPTSTRIP": Traits(),
    "TTL": _alters("ttl"),
    "HL": _alters("ttl"),
    "TOS": _alters("tos"),
    "DSCP": _alters("tos"),
    "ECN": _alters("tos"),
    "QUEUE": Traits(True, _BOTH),
    "NFQUEUE": Traits(True, _BOTH),
    "TARPIT": Traits(True, _DROP),
    "STEAL": Traits(True, _DROP),
    "DNAT": _NAT,
    "SNAT": _NAT,
    "MASQUERADE": _NAT,
    "REDIRECT": _NAT,
    "NETMAP": _NAT,
    "SAME": _NAT,
    "DNPT": _alters("address"),
    "SNPT": _alters("address"),
    "HMARK": _alters("mark"),
    "TPROXY": Traits(True, _BOTH, frozenset({"address", "mark"})),
    "SYNPROXY": Traits(False, _DROP),
    "TEE": Traits(),
    "LED": Traits(),
    "IDLETIMER": Traits(effect=StateEffect.NAMED),
    "RATEEST": Traits(effect=StateEffect.NAMED),
}
UNKNOWN = Traits(False, _BOTH, frozenset({"all"}), StateEffect.INSTANCE)


_FLAGS = (
    "--log-tcp-sequence", "--log-tcp-options", "--log-ip-options", "--log-uid", "--log-macdecode",
    "--queue-bypass", "--queue-cpu-fanout", "--notrack", "--clamp-mss-to-pmtu", "--random",
    "--random-fully", "--persistent", "--nodst", "--ecn-tcp-remove", "--save-mark",
    "--restore-mark", "--save", "--restore", "--sack-perm", "--timestamp", "--ecn",
    "--checksum-fill", "--exist", "--map-mark", "--map-prio", "--map-queue", "--alarm",
    "--send_nl_msg", "--led-always-blink",
)  # fmt: skip
"""Options of the known targets that take no argument."""


def option_words(target: str, option: str) -> int | None:
    """How many words an option of a target takes, itself included; None for unknown targets."""
    if target not in EXTENSIONS:
        return None
    if "=" in option or any(flag.startswith(option) for flag in _FLAGS):
        return 1
    return 3 if target == "SET" and option in ("--add-set", "--del-set", "--map-set") else 2


def make(flag: str, name: str, options: tuple[str, ...], user_chains: frozenset[str]) -> Target:
    """The target of a rule; `flag` is -j or -g."""
    words = (flag, name, *options)
    if flag == "-g" and name in user_chains:
        return Target(TargetKind.GOTO, name, words)
    if name in user_chains:
        return Target(TargetKind.JUMP, name, words)
    if name in VERDICTS and flag == "-j":
        return Target(TargetKind.VERDICT, name, words)
    traits = EXTENSIONS.get(name, UNKNOWN)
    return Target(
        TargetKind.EXTENSION,
        name,
        words,
        traits.terminal,
        traits.verdicts,
        traits.alters,
        traits.effect,
    )


NO_TARGET = Target(TargetKind.NONE, "", ())
