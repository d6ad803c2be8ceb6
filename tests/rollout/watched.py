"""A classifier in shadow at the firewall's v1, watched packet by packet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.kernel.addresses import read_local_table
from bpfilter.kernel.config import Mode
from bpfilter.kernel.program import Classifier, Options
from bpfilter.rollout import host
from bpfilter.rollout.comparison import Comparison, Mechanism, Pairs, RuleKey
from bpfilter.rollout.prepare import prepare
from bpfilter.rollout.watching import Watch
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, RuleRef
from tests.rollout.network import Net, entered

BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
ACCEPTED, DROPPED, EITHER = ("ACCEPT", "ACCEPT"), ("DROP", "DROP"), ("OPEN", "ACCEPT")
_SETTLE_SECONDS = 3.0
_LEASE = 60 * 10**9 - 10**8


RULES = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT {icmp}
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m udp --dport 4001 -j ACCEPT
-A INPUT -p udp -m udp --dport 4002 -m recent --set --name guests -j ACCEPT
-A INPUT -p udp -m udp --dport 4003 -j REJECT
-A INPUT -p udp -m udp --dport 4005 -j NFQUEUE --queue-num 7
COMMIT
"""


def load(net: Net, backend: Backend = Backend.NFT, tables: str = "") -> None:
    for family, icmp in (
        (Family.IPV4, "-p icmp -j ACCEPT"),
        (Family.IPV6, "-p ipv6-icmp -j ACCEPT"),
    ):
        net.iptables(backend, family).restore(RULES.format(icmp=icmp) + tables)


@dataclass(frozen=True)
class Watched:
    """One generation of the program and its watch."""

    net: Net
    classifier: Classifier
    watch: Watch

    def comparison(self) -> Comparison:
        return settled(self.watch.comparison)

    def accept_rules(self) -> None:
        """Vouch for the rules as they are now."""
        with entered(self.net.fw):
            self.classifier.set_generation(self.classifier.observe_generation())
        self.classifier.set_lease(time.monotonic_ns() + _LEASE)


@contextmanager
def watched(
    net: Net,
    *,
    shadow_share: float = 1.0,
    verify_share: float = 0.0,
    room: int = 8192,
    revokes: bool = False,
    forward: bool = False,
) -> Iterator[Watched]:
    """Translate the firewall's rules and watch; marks are written only to verify.

    `forward`: the program is told that every packet goes to FORWARD.
    """
    with entered(net.fw), ExitStack() as stack:
        index = host.link_index("v1")
        assert index is not None
        options = Options(
            mode=Mode.FORCED if forward else Mode.LIVE_INPUT,
            chain="FORWARD" if forward else "INPUT",
            interfaces={index: "v1"},
            addresses=read_local_table(),
            marking=DEFAULT_MARK if verify_share else None,
            leased=True,
            generation=True,
            shadow_share=0.0 if verify_share else shadow_share,
            verify_share=verify_share,
            room=room,
        )
        chains = [("filter", "FORWARD" if forward else "INPUT")]
        classifier = stack.enter_context(Classifier.load(prepare(chains=chains).image, options))
        watch = Watch.start(classifier, {index: "v1"}, revokes=revokes)
        stack.callback(watch.close)
        found = Watched(net, classifier, watch)
        found.accept_rules()
        classifier.attach(index)
        yield found


def pairs(comparison: Comparison, number: int, family: Family = Family.IPV4) -> Pairs:
    """What was counted at a rule of INPUT; 0 is the policy."""
    return comparison.rules.get(RuleKey(family, RuleRef("filter", "INPUT", number)), Pairs({}))


def said_and_was(comparison: Comparison, number: int) -> dict[tuple[str, str], int]:
    """The pairs of an IPv4 rule of INPUT as plain words."""
    return {
        (said.value, was.value): n for (said, was), n in pairs(comparison, number).counts.items()
    }


def settled(compared: Callable[[], Comparison]) -> Comparison:
    """As it is when no packet is between its prediction and its end; soon, or as it is then.

    The host's own packets (neighbours, routers) come whenever they like, and counters are read one
    after the other.
    """
    end = time.monotonic() + _SETTLE_SECONDS
    while _ended(found := compared()) != found.remembered and time.monotonic() < end:
        time.sleep(0.01)
    return found


def _ended(comparison: Comparison) -> int:
    unjudged = sum(comparison.incomparable.values()) + sum(comparison.unseen.values())
    return comparison.matches + comparison.mismatches + unjudged


def sound(comparison: Comparison) -> None:
    """No mismatch, and every prediction came to exactly one end."""
    assert comparison.mechanism is Mechanism.PACKETS
    assert comparison.mismatches == 0
    assert comparison.samples == ()
    assert _ended(comparison) == comparison.remembered
