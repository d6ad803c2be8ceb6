"""What we read from hand-written words is what both backends make of them.

Real iptables loads each rule and prints it in its own words; read again, these must mean the same.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family, Field, Intervals, Term, field_bits
from bpfilter.ruleset.model import Backend, Rule
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.tools import tool
from tests.ruleset.ruleset_kernel import in_namespace

pytestmark = pytest.mark.kernel

BOTH = """
-s 10.1.2.3
-s 010.0.0.1
-s 0x0a.1.2.3
-s 10/8
-s 10.1/16
-s 10.1.2.3/010
-s 10.1.2.3/255.0.255.0
! -s 10.1.2.3/0.0.0.255
-s 0/0
! -i eth+
-i +
-p TCP
-p 0x6
-p 06
-p all
! -p tcp
-f
! -f
-p tcp --dport ssh
-p tcp --dport=80
-p tcp --dpo 80
-p tcp --destination-port 80
-p tcp --sport 80:
-p tcp --sport 0120
-p tcp ! --sport ssh:telnet
-p tcp ! --dport 80 ! --sport 1:10 --syn
-p tcp ! --syn
-p tcp --tcp-flags ALL NONE
-p tcp --tcp-flags SYN ACK
-p tcp ! --tcp-flags syn,Ack syn
-p tcp --tcp-option 4 --dport 80
-p udp --sport 90:80
-p udp ! --sport domain --dport :1023
-p sctp ! --sport 53:60
-p dccp -m dccp --dport 6:5
-p icmp --icmp-type 255/3
-p icmp ! --icmp-type any
-p icmp --icmp-type echo-req
-p icmp ! --icmp-type 3/4
-p icmp --icmp-type 010
-p icmp --icmp-type parameter-problem
-p udp -m multiport --dports tftp,domain
-p tcp -m multiport ! --ports 22,80:90
-p tcp -m multiport --dports 022,0x50
-p tcp --dport 22 -m multiport --sports 80
-m iprange --src-range 10.0.0.9-10.0.0.5
-m iprange ! --src-range 10.0.0.9-10.0.0.5
-m iprange --src-range 10.0.0.5
-m iprange --src-range 010.0.0.0-010.0.0.9
-m length --length 200:100
-m length ! --length 0x64:0310
-m ttl --ttl-lt 0
-m ttl ! --ttl 5
-m tos --tos 0x10/0x0f
-m tos ! --tos minimize-delay
-m dscp ! --dscp-class AF21
-m ecn ! --ecn-ip-ect 2
-m mac --mac-source 0:1:2:3:4:5
-m pkttype --pkt-type otherhost
-m addrtype --dst-type LOC
-m addrtype ! --dst-type B --src-type U
-m conntrack --ctstate EST,REL
-m conntrack ! --ctstate i,n
-m conntrack --ctstate DN,NEW
-m state --state est
-m comment --comment a"b c" -p udp
-m comment --comment "x"-p udp
-m comment --comment ! -p udp
-m policy --dir in --pol ipsec --proto esp
-m set ! --match-set blocked src,dst -p udp
--protoc udp --sour 10.0.0.1
-p tcp -j LOG --log-prefix x --dport 22
-p tcp -j REJECT --dport 22 --reject-with tcp-reset
-j LOG --log-prefix "--dport" -p tcp --dport 22
-p tcp -mtcp --dport 5
-p 6 --dport 22 -v
""".strip().splitlines()

IPV6 = """
-s 2001:db8::1/010
-s ::1/ffff:0:ffff::
! -s ::ffff:1.2.3.4/112
-p hopopt
-p icmpv6 --icmpv6-type neighbour-adv
-p icmpv6 ! --icmpv6-type 255
-p ipv6-icmp -m icmpv6 --icmpv6-type 1/4
-p mh --mh-type 1
-m hl ! --hl-eq 5
-m hl --hl-gt 255
-m addrtype --dst-type LOC
-m iprange ! --src-range 2001:db8::9-2001:db8::1
-p tcp -m multiport --ports ssh
""".strip().splitlines()

REFUSED = """
-s 1.2.3.4/255.255
-s 08.0.0.1
-s 10.0.0.1/08
-s 1.2.3.4 -s 1.2.3.5
! -s 1.2.3.4,5.6.7.8
-p tcp -p udp
-p ²
-p 1_0
-o eth0
-p tcp --sport 90:80
-p tcp --sport 65536
-p tcp --sport 1 --sport 2
-p tcp --syn --tcp-flags SYN,ACK SYN
-p tcp --tcp-option 0
-p icmp -m icmp
-p icmp --icmp-type host-
-m multiport --dports 22
! -p tcp -m multiport --dports 22
-p tcp -m multiport --dports 80:22
-p tcp -m multiport --dports :80
-p udp -m multiport --dports ssh
-p tcp -m multiport --dports 22 --sports 80
-m ttl ! --ttl-lt 5
-m ttl --ttl-gt 5 --ttl-lt 9
-m dscp --dscp 1 --dscp-class EF
-m addrtype --limit-iface-in
-m addrtype --dst-type LOCAL --dst-type UNICAST
-m conntrack --ctstate NEWX
-m conntrack --ctstate NEW,
-m state --state ! NEW
-m comment ! --comment x
-m comment --comment a"b c"d
-m rt --rt-type 0
-j ACCEPT -j DROP
-ptcp
""".strip().splitlines()

Box = frozenset[tuple[str, object]]


def boxes(rule: Rule, family: Family) -> frozenset[Box]:
    """The static part of a rule as the set of its non-empty conjunctions."""
    alternatives = [m.alternatives for m in rule.matches if m.alternatives is not None]
    found = (conjunction(itertools.chain(*choice), family) for choice in product(alternatives))
    return frozenset(box for box in found if box is not None)


def product(
    alternatives: list[tuple[tuple[Term, ...], ...]],
) -> itertools.product[tuple[Term, ...]]:
    return itertools.product(*alternatives)


def conjunction(terms: itertools.chain[Term], family: Family) -> Box | None:
    """Field → values, without fields that may be anything; None if nothing is left."""
    values: dict[Field, Intervals] = {}
    others: set[tuple[str, object]] = set()
    for term in terms:
        if isinstance(term.values, Intervals):
            known = values.get(term.field, _full(term.field, family))
            values[term.field] = known.intersect(term.values)
        else:
            others.add((str(term), term.negated))
    if not all(values.values()):
        return None
    told = {(str(f), v) for f, v in values.items() if v != _full(f, family)}
    return frozenset(others | told)


def _full(field: Field, family: Family) -> Intervals:
    return (
        Intervals.single(0, 4)
        if field is Field.STATE
        else Intervals.full(field_bits(field, family))
    )


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("family", list(Family))
def test_words_mean_what_iptables_makes_of_them(
    family: Family, backend: Backend, tmp_path: Path
) -> None:
    lines = BOTH if family is Family.IPV4 else IPV6
    text = "".join(f"{line}\n" for line in ["*filter", *(f"-A INPUT {x}" for x in lines), "COMMIT"])
    ours = list(read_text(text, family=family).rules())
    assert len(ours) == len(lines)
    (tmp_path / "rules").write_text(text)
    script = 'ipset create blocked hash:ip,port; "$2" < "$1" >&2; "$3"'
    tools = (tool(family, backend, "restore"), tool(family, backend, "save"))
    printed = in_namespace(script, str(tmp_path / "rules"), *tools, directory=tmp_path)
    theirs = list(read_text(printed, family=family).rules())
    assert len(theirs) == len(lines)
    for line, mine, other in zip(lines, ours, theirs, strict=True):
        assert boxes(mine, family) == boxes(other, family), line
        dynamic = [[m.name for m in rule.matches if m.dynamic] for rule in (mine, other)]
        assert dynamic[0] == dynamic[1], line
        assert (mine.target.kind, mine.target.name) == (other.target.kind, other.target.name), line


def test_words_that_both_backends_refuse_are_refused(tmp_path: Path) -> None:
    for index, line in enumerate(REFUSED):
        text = f"*filter\n-A INPUT {line}\nCOMMIT\n"
        (tmp_path / f"{index}.rules").write_text(text)
        with pytest.raises(RulesetRefused) as refusal:
            read_text(text, family=Family.IPV4)
        assert refusal.value.line == 2, line
    script = """
    for f in "$1"/*.rules; do
        for b in legacy nft; do
            iptables-$b-restore --test < "$f" >/dev/null 2>&1 && echo "$b takes $f" || true
        done
    done"""
    assert in_namespace(script, str(tmp_path), directory=tmp_path) == ""
