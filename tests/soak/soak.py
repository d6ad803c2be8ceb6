"""A long run of mixed traffic in shadow: `python -m tests.soak.soak --packets 1000000`.

Both backends, both families. Prints what became of the predictions, each by cause; exits with 1 if
a bound of the specification is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfilter.rollout.comparison import Comparison
from bpfilter.rollout.watching import SETTLE_SECONDS
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, call, entered
from tests.rollout.watched import Watched, watched
from tests.soak.traffic import Traffic

LEAST_ATTRIBUTED, MOST_INCOMPARABLE, MOST_UNSEEN = 0.999, 0.05, 0.001
_ROUND = 4000

RULES = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:SERVICES - [0:0]
:REFUSED - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT {icmp} -j ACCEPT
-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j SERVICES
-A INPUT -p tcp -m multiport --dports 22,80 -m conntrack --ctstate NEW -j DROP
-A INPUT -p udp -m udp --dport 53 -j ACCEPT
-A INPUT -p udp -m multiport --dports 123,161 -j ACCEPT
-A INPUT -p udp --dport 5060 -m hashlimit --hashlimit-upto 9/sec --hashlimit-name sip -j ACCEPT
-A INPUT -p udp -m udp --dport 9 -j REJECT
-A INPUT -m length --length 0:60 -j REFUSED
-A INPUT -p udp -m udp --dport 33434 -m recent --set --name tracers -j DROP
-A SERVICES -p tcp -m multiport --dports 22,80,443,8080 -j ACCEPT
-A SERVICES -p tcp -m tcp --dport 139 -j REJECT --reject-with tcp-reset
-A SERVICES -p tcp -m tcp --dport 6000 -j RETURN
-A SERVICES -p tcp -m tcp --dport 23 -j LOG --log-prefix telnet
-A REFUSED -p tcp -j DROP
COMMIT
"""


def soak(backend: Backend, packets: int, *, gro: bool, seed: int = 1) -> Comparison:
    """Send until so many packets came to the program; what was found."""
    with prepared(backend, gro=gro) as net, watched(net) as found, Traffic(net, seed) as traffic:
        while True:
            traffic.round(_ROUND)
            found.accept_rules()
            found.watch.poll()
            comparison = found.comparison()
            if comparison.predicted >= packets:
                return settled(found)


@contextmanager
def prepared(backend: Backend, *, gro: bool) -> Iterator[Net]:
    with Net() as net:
        for family, icmp in ((Family.IPV4, "-p icmp"), (Family.IPV6, "-p ipv6-icmp")):
            net.iptables(backend, family).restore(RULES.format(icmp=icmp))
        with entered(net.fw):
            for name in ("all", "v1"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
        switch = "on" if gro else "off"
        call("ip", "netns", "exec", net.fw, "ethtool", "-K", "v1", "gro", switch)
        with entered(net.peer):
            call("ethtool", "-K", "p1", "tso", "off" if gro else "on")
        yield net


def settled(found: Watched) -> Comparison:
    """Once the last packets came to an end."""
    time.sleep(SETTLE_SECONDS + 0.2)
    return found.comparison()


def faults(comparison: Comparison) -> list[str]:
    """What the specification does not allow."""
    ended = comparison.matches + sum(comparison.incomparable.values())
    ended += sum(comparison.unseen.values()) + comparison.mismatches
    found = {
        f"{comparison.mismatches} mismatches": comparison.mismatches > 0,
        "too few attributed": comparison.attributed_share < LEAST_ATTRIBUTED,
        "too many say nothing": comparison.incomparable_share > MOST_INCOMPARABLE,
        "too many unseen": comparison.unseen_share > MOST_UNSEEN,
        f"{comparison.remembered - ended} ends are missing": ended != comparison.remembered,
    }
    return [what for what, holds in found.items() if holds]


def describe(comparison: Comparison) -> str:
    """The figures, each cause by name."""
    punted = sum(comparison.punted.values())
    lines = [
        f"{comparison.predicted} packets, {punted} punted, {comparison.remembered} compared:"
        f" {comparison.matches} matches, {comparison.mismatches} mismatches",
        f"attributed {comparison.attributed_share:.4%},"
        f" not comparable {comparison.incomparable_share:.4%},"
        f" unseen {comparison.unseen_share:.4%}",
    ]
    lines += [f"  punted, {reason.name}: {n}" for reason, n in comparison.punted.items()]
    lines += [f"  unseen, {cause}: {n}" for cause, n in comparison.unseen.items() if n]
    lines += [
        f"  not comparable, {cause}: {n}" for cause, n in comparison.incomparable.items() if n
    ]
    exercised = sum(bool(pairs.counts) for pairs in comparison.rules.values())
    lines.append(f"{exercised} of {len(comparison.rules)} rules exercised")
    for sample in comparison.samples[:5]:
        lines.append(f"  {sample}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    failed = False
    cases = [(backend, gro) for backend in Backend for gro in (True, False)]
    with tempfile.TemporaryDirectory(prefix="bpfilter-soak-") as directory:
        os.environ["XTABLES_LOCKFILE"] = f"{directory}/xtables.lock"
        for backend, gro in cases:
            began = time.monotonic()
            comparison = soak(backend, chosen.packets // len(cases), gro=gro, seed=chosen.seed)
            found = faults(comparison)
            failed |= bool(found)
            seconds = time.monotonic() - began
            print(f"iptables-{backend}, GRO {'on' if gro else 'off'}, {seconds:.0f} s")
            print(describe(comparison))
            print("; ".join(found) or "all bounds hold", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
