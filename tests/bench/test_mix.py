"""The share of punted packets is that of walking every packet by itself."""

from __future__ import annotations

from pathlib import Path

from bench.mix import Mix, punted_share
from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.compiler.ir import PUNTED
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.walk import walk
from bpfilter.ruleset.read import read_text

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = """*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m limit --limit 5/min -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 -m recent --set --name web
-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT
COMMIT
"""


def one_by_one(chain: ChainPlan, packets: int, seed: int) -> int:
    mix = Mix(chain.flat, seed)
    punted = 0
    for _ in range(packets):
        packet, state = mix.packet()
        punted += walk(chain.flat, packet, state)[0] == PUNTED
    return punted


def test_many_packets_at_once_give_the_share_of_one_by_one() -> None:
    plan = compile_ruleset(read_text(RULES))
    chain = plan.chains[("filter", "INPUT")]
    coded = frozenset(code.function for code in assemble([plan]).codes)
    share = punted_share(chain, coded, 2000, 1)
    assert share.punted == one_by_one(chain, 2000, 1) > 0
    assert share.causes == (("filter/INPUT/2", share.punted),)


def test_without_codes_every_packet_is_punted() -> None:
    plan = compile_ruleset(read_text(RULES))
    share = punted_share(plan.chains[("filter", "INPUT")], frozenset(), 500, 1)
    assert share.punted == 500
