"""State that lives in one rule is never copied; state shared by name is exact from any copy.

CASES t4, t15, t26: limits that let three times as many through, a RETURN of a built-in chain.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP

from bpfilter.rollout.notices import notices
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.cases.case import ACCEPT, DROP, FW4, PEER4, Case, compare, rules
from tests.cases.enforcing import enforcing

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
IP4 = IP(src=PEER4, dst=FW4)

BETWEEN = (
    "-A INPUT -p udp -m udp --dport 1001 -m mark --mark 0x1/0x1 -j ACCEPT",
    "-A INPUT -p udp -m udp --dport 1002 -m length --length 0:20 -j ACCEPT",
)
"""Rules that give the three ports different residuals around the stateful one."""


def sixty(case: Case) -> int:
    """How many of sixty datagrams to three ports, in turns, pass."""
    packets = [IP4 / UDP(sport=2000 + n, dport=1000 + n % 3) for n in range(60)]
    return case.passing(*packets)


@BACKENDS
@pytest.mark.parametrize(
    "match, passing",
    [
        ("limit --limit 1/hour --limit-burst 5", 5),
        ("quota --quota 200", 7),
        ("connlimit --connlimit-upto 1 --connlimit-mask 32 --connlimit-saddr", 1),
        ("statistic --mode nth --every 7 --packet 0", 9),
    ],
    ids=lambda value: str(value).split(" ")[0],
)
def test_state_of_one_rule_is_shared_by_all_packets(
    match: str, passing: int, backend: Backend
) -> None:
    ruleset = rules(f"-A INPUT -p udp -m {match} -j ACCEPT", *BETWEEN)
    assert compare(ruleset, sixty, backend=backend, decided=False) == passing


@BACKENDS
def test_state_shared_by_name_is_exact_in_residuals(backend: Backend) -> None:
    match = "hashlimit --hashlimit-upto 1/hour --hashlimit-burst 5 --hashlimit-name case"
    ruleset = rules(f"-A INPUT -p udp -m {match} -j ACCEPT", *BETWEEN)
    assert compare(ruleset, sixty, backend=backend) == 5


@BACKENDS
def test_a_dynamic_return_of_a_built_in_chain_is_the_policy(backend: Backend) -> None:
    match = "hashlimit --hashlimit-upto 1/hour --hashlimit-burst 20 --hashlimit-name back"
    ruleset = rules(
        f"-A INPUT -p udp -m {match} -j RETURN",
        BETWEEN[0],
        "-A INPUT -p udp -j ACCEPT",
    )
    assert compare(ruleset, sixty, backend=backend) == 40


@BACKENDS
def test_a_recent_list_gets_one_stamp_per_packet(backend: Backend) -> None:
    ruleset = rules(
        "-A INPUT -p udp -m recent --name case --set",
        BETWEEN[0],
        "-A INPUT -p udp -m recent --name case --rcheck --seconds 600 --hitcount 11 -j ACCEPT",
    )
    assert compare(ruleset, sixty, backend=backend) == 50


def test_a_dynamic_return_of_a_user_chain_leads_back_to_its_caller() -> None:
    match = "hashlimit --hashlimit-upto 1/hour --hashlimit-burst 20 --hashlimit-name user"
    ruleset = rules(
        "-A INPUT -p udp -j inner",
        "-A INPUT -p udp -m udp --dport 1000 -j ACCEPT",
        f"-A inner -p udp -m {match} -j RETURN",
        "-A inner -p udp -m udp --dport 1001 -j ACCEPT",
        "-A inner -p udp -m udp --dport 1002 -j DROP",
        chains=["inner"],
    )
    # Of the first twenty, seven go to port 1000; of the others, 13 each to ports 1000 and 1001.
    assert compare(ruleset, sixty) == 33


@pytest.mark.parametrize("backend, refilled", [(Backend.LEGACY, 4), (Backend.NFT, 0)], ids=str)
def test_what_our_edit_refills_is_announced(backend: Backend, refilled: int) -> None:
    text = rules("-A INPUT -p udp -m quota --quota 112 -j ACCEPT")
    five = [IP4 / UDP(sport=2000 + n, dport=1000) for n in range(5)]
    with Case(backend, Family.IPV4) as case:
        case.tables.restore(text)
        assert [case.passing(*five), case.passing(*five)] == [4, 0]
        with enforcing(case, backend, Family.IPV4):
            assert case.passing(*five) == refilled
    said = [line for line in notices([read_text(text)], backend) if "filter/INPUT/1" in line]
    assert bool(said) == bool(refilled)


@BACKENDS
def test_words_that_need_quoting_survive_in_residuals(backend: Backend) -> None:
    odd = ['"a \\"b\\" \\\\ c"', "'single'", '"-j DROP"', '"caf\u00e9 $HOME `x`"', '""']
    ruleset = rules(
        *(
            f"-A INPUT -p udp -m udp --dport {1000 + n} -m mark --mark 0x0/0x1"
            f" -m comment --comment {text} -j ACCEPT"
            for n, text in enumerate(odd)
        ),
        '-A INPUT -p udp -m string --algo bm --string "a b|c" -j DROP',
        '-A INPUT -p udp -m string --algo bm --hex-string "|00ff|x y" -j DROP',
        '-A INPUT -p udp -m limit --limit 5/min -j LOG --log-prefix "odd \\"one\\": "',
    )

    def scenario(case: Case) -> list[str]:
        return case.judged(*(IP4 / UDP(dport=1000 + n) for n in range(len(odd) + 1)))

    assert compare(ruleset, scenario, backend=backend) == [ACCEPT] * len(odd) + [DROP]
