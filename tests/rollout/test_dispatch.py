"""A code executes its function exactly, on the kernel, with both backends.

The marks that the program would write are made by mangle PREROUTING rules, one code per port.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from bpfilter.compiler.ir import FlatChain, Function, Item, ItemKind, Space, Verdict, Walk
from bpfilter.compiler.layout import ChainTables
from bpfilter.compiler.mark import DEFAULT_MARK
from bpfilter.compiler.plan import ChainPlan, Code
from bpfilter.errors import RolloutError
from bpfilter.rollout import ours
from bpfilter.rollout.dispatch import Dispatch, merge, render
from bpfilter.rollout.tables import Standing, Tables
from bpfilter.ruleset.fields import ALL_STATES, Family, State
from bpfilter.ruleset.model import Backend, RuleRef, Ruleset
from bpfilter.ruleset.read import read_text
from tests.rollout.network import FW4, PEER4, Iptables, Net, call, entered, survivors

BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
ACCEPT, DROP, PUNT = Walk((), Verdict.ACCEPT), Walk((), Verdict.DROP), Walk((), Verdict.PUNT)


def text(*rules: str, policy: str = "DROP", chains: Sequence[str] = ()) -> str:
    declared = [f":{name} - [0:0]" for name in chains]
    head = ["*filter", f":INPUT {policy} [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    return "\n".join([*head, *declared, *rules, "COMMIT", ""])


def item(
    number: int,
    *,
    kind: ItemKind = ItemKind.RULE,
    terminal: bool = False,
    chain: str | None = None,
    goto_policy: str | None = None,
) -> Item:
    ref = RuleRef("filter", "INPUT", number)
    return Item(ref, kind, terminal, frozenset(), "test", chain, goto_policy)


def chain_plan(ruleset: Ruleset, items: Iterable[Item] = (), chain: str = "INPUT") -> ChainPlan:
    flat = FlatChain("filter", chain, Space(ruleset.family), (), tuple(items))
    none, wide = np.zeros(0, np.uint32), np.zeros((0, 8), np.uint64)
    arrays = none, wide, wide, wide, none, {}, none.astype(np.uint8)
    tables = ChainTables(flat, (), (ALL_STATES,), 0, 1, 8, *arrays)
    return ChainPlan("filter", chain, {}, flat, tables, ())


def dispatch(
    source: str,
    functions: Sequence[Function],
    items: Iterable[Item] = (),
    *,
    family: Family = Family.IPV4,
    chain: str = "INPUT",
) -> Dispatch:
    """Codes 1, 2, … stand for the functions."""
    ruleset = read_text(source, family=family)
    codes = [Code(i, family, "filter", chain, f) for i, f in enumerate(functions, start=1)]
    return render(ruleset, chain_plan(ruleset, items, chain), codes, DEFAULT_MARK, ["v1"])


def always(walk: Walk) -> Function:
    return Function(((ALL_STATES, walk),))


def by_state(**walks: Walk) -> Function:
    return Function(tuple((int(state), walks[state.name or ""]) for state in State))


def install(tables: Iptables, source: str, made: Dispatch, ports: Sequence[int]) -> None:
    """The ruleset, a code per port from the second on (the first is unmarked), the dispatch."""
    marks = [
        f"-A PREROUTING -p udp -m udp --dport {port} -j MARK --set-xmark {i << 24:#x}/0xff000000"
        for i, port in enumerate(ports)
    ]
    mangle = "\n".join(["*mangle", ":PREROUTING ACCEPT [0:0]", *marks, "COMMIT", ""])
    tables.restore(source + mangle + survivors(*ports))
    tables.restore(made.add, "--noflush")


def passed(tables: Iptables, port: int) -> int:
    return tables.packets(rf"^-A INPUT -p udp -m udp --dport {port}$")


@pytest.mark.kernel
@BACKENDS
def test_codes_are_obeyed_and_unmarked_packets_take_the_original_chain(
    net: Net, backend: Backend
) -> None:
    source = text("-A INPUT -p udp -m udp --dport 4000 -j ACCEPT")
    tables = net.iptables(backend)
    install(tables, source, dispatch(source, [always(ACCEPT), always(DROP)]), [4000, 4001, 4002])
    for port in (4000, 4001, 4002):
        net.send(port, 3)
    assert [passed(tables, port) for port in (4000, 4001, 4002)] == [3, 3, 0]
    assert tables.packets("^-A INPUT -p udp -m udp --dport 4000 -j ACCEPT") == 3


@pytest.mark.kernel
@BACKENDS
def test_an_unknown_code_takes_the_original_chain_with_a_cleared_field(
    net: Net, backend: Backend
) -> None:
    source = text("-A INPUT -m mark --mark 0x0/0xff000000 -j ACCEPT")
    tables = net.iptables(backend)
    install(tables, source, dispatch(source, [always(DROP)]), [4000, 4001, 4002, 4003])
    for port in (4000, 4001, 4002, 4003):
        net.send(port, 2)
    assert [passed(tables, port) for port in (4000, 4001, 4002, 4003)] == [2, 0, 2, 2]


@pytest.mark.kernel
@BACKENDS
def test_forty_codes_are_told_apart(net: Net, backend: Backend) -> None:
    source = text()
    functions = [always(ACCEPT if number % 3 else DROP) for number in range(1, 41)]
    ports = [5000 + number for number in range(41)]
    tables = net.iptables(backend)
    install(tables, source, dispatch(source, functions), ports)
    for port in ports:
        net.send(port)
    assert [passed(tables, 5000 + n) for n in range(41)] == [int(n % 3 > 0) for n in range(41)]


@pytest.mark.kernel
@BACKENDS
def test_each_state_takes_its_own_walk(net: Net, backend: Backend) -> None:
    """NEW drops, ESTABLISHED accepts, UNTRACKED accepts after its item, INVALID is punted."""
    source = text(
        "-A INPUT -p udp -m udp --dport 4003 -j LOG --log-prefix untracked",
        "-A INPUT -m conntrack --ctstate INVALID -j ACCEPT",
    )
    function = by_state(
        NEW=DROP, ESTABLISHED=ACCEPT, RELATED=ACCEPT, INVALID=PUNT,
        UNTRACKED=Walk((0,), Verdict.ACCEPT),
    )  # fmt: skip
    tables = net.iptables(backend)
    made = dispatch(source, [function] * 4, [item(1)])
    install(tables, source, made, [4000, 4001, 4002, 4003, 4004])
    tables.restore(
        "*raw\n-A PREROUTING -p udp -m udp --dport 4003 -j CT --notrack\nCOMMIT\n", "--noflush"
    )
    net.send(4001, 3)  # NEW
    with net.udp(net.fw, port=4002) as local, net.udp(net.peer, port=777) as remote:
        local.sendto(b"first", (PEER4, 777))
        remote.recvfrom(10)
        remote.sendto(b"reply", (FW4, 4002))  # ESTABLISHED
        assert local.recvfrom(10)[0] == b"reply"
    net.send(4003, 2)  # UNTRACKED
    net.frame(bad_checksum_udp(4004))  # INVALID
    assert [passed(tables, port) for port in (4001, 4002, 4003, 4004)] == [0, 1, 2, 1]
    assert tables.packets("^-A BPF-W-.* -j LOG --log-prefix untracked") == 2
    assert tables.packets("^-A INPUT -m conntrack --ctstate INVALID -j ACCEPT") == 1


def bad_checksum_udp(port: int) -> bytes:
    """A UDP packet with a wrong checksum, which conntrack calls INVALID."""
    udp = struct.pack("!HHHH", 999, port, 12, 0x1234) + b"data"
    source, target = (bytes(map(int, a.split("."))) for a in (PEER4, FW4))
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, source, target) + udp


@pytest.mark.kernel
@BACKENDS
def test_a_limit_in_a_residual_limits_and_reject_replies(net: Net, backend: Backend) -> None:
    source = text(
        "-A INPUT -p udp -m limit --limit 1/hour --limit-burst 3 -j ACCEPT",
        "-A INPUT -p udp -j REJECT --reject-with icmp-port-unreachable",
    )
    items = [item(1), item(2, terminal=True)]
    tables = net.iptables(backend)
    install(tables, source, dispatch(source, [always(Walk((0, 1), None))], items), [4000, 4001])
    net.send(4001, 5)
    assert passed(tables, 4001) == 3
    with net.udp(net.peer) as sock:
        sock.connect((FW4, 4001))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)


@pytest.mark.kernel
@BACKENDS
def test_a_return_that_only_iptables_can_decide_gives_the_policy(
    net: Net, backend: Backend
) -> None:
    source = text(
        "-A INPUT -p udp -m limit --limit 1/hour --limit-burst 2 -j RETURN", "-A INPUT -j ACCEPT"
    )
    tables = net.iptables(backend)
    function = always(Walk((0,), Verdict.ACCEPT))
    install(tables, source, dispatch(source, [function], [item(1)]), [4000, 4001])
    net.send(4001, 5)
    assert passed(tables, 4001) == 3


@pytest.mark.kernel
@BACKENDS
def test_one_shared_copy_of_a_limited_log_serves_all_residuals(net: Net, backend: Backend) -> None:
    rule = "-A INPUT -m limit --limit 1/hour --limit-burst 4 -j LOG --log-prefix shared"
    source = text(rule)
    functions = [always(Walk((0,), Verdict.ACCEPT)), always(Walk((0,), Verdict.DROP))]
    tables = net.iptables(backend)
    made = dispatch(source, functions, [item(1, kind=ItemKind.SHARED)])
    install(tables, source, made, [4000, 4001, 4002])
    net.send(4001, 3)
    net.send(4002, 3)
    assert tables.packets("^-A BPF-S-.* -j LOG --log-prefix shared") == 4
    assert [passed(tables, port) for port in (4001, 4002)] == [3, 0]


COPIED = text(
    "-A INPUT -m recent --name guests --rcheck -j first",
    "-A INPUT -m recent --name guests --set -j ACCEPT",
    "-A first -p udp -m udp --sport 7000 -j RETURN",
    "-A first -j second",
    "-A second -p udp -m udp --sport 7001 -j RETURN",
    "-A second -j DROP",
    chains=("first", "second"),
)


@pytest.mark.kernel
@BACKENDS
def test_jumps_run_our_copies_of_user_chains(net: Net, backend: Backend) -> None:
    """The first packet is accepted; later ones only from the ports at which the copies return."""
    items = [item(1, kind=ItemKind.COPY, chain="first"), item(2, terminal=True)]
    made = dispatch(COPIED, [always(Walk((0, 1), None))], items)
    assert not any("-j first" in rule for rules in made.chains.values() for rule in rules)
    tables = net.iptables(backend)
    install(tables, COPIED, made, [4000, 4001])
    for port in (8000, 8001, 7000, 7001, 8002):
        with net.udp(net.peer, port=port) as sock, net.arriving(4001):
            sock.sendto(b"x", (FW4, 4001))
    assert passed(tables, 4001) == 3
    assert tables.packets("^-A (INPUT|first|second) .*-j (first|second|ACCEPT|DROP)") == 0


@pytest.mark.kernel
@BACKENDS
def test_a_goto_from_the_built_in_chain_ends_in_its_policy(net: Net, backend: Backend) -> None:
    source = text(
        "-A INPUT -m statistic --mode nth --every 2 --packet 0 -g side",
        "-A INPUT -j ACCEPT",
        "-A side -p udp -m udp --sport 7000 -j ACCEPT",
        chains=("side",),
    )
    items = [item(1, kind=ItemKind.COPY, chain="side", goto_policy="DROP")]
    tables = net.iptables(backend)
    made = dispatch(source, [always(Walk((0,), Verdict.ACCEPT))], items)
    install(tables, source, made, [4000, 4001])
    net.send(4001, 10)
    assert passed(tables, 4001) == 5


@pytest.mark.kernel
@BACKENDS
def test_forward_does_not_obey_input_codes_and_sees_no_mark(net: Net, backend: Backend) -> None:
    """The marked packets are forwarded back out of the interface they came from."""
    source = text("-A FORWARD -m mark --mark 0x0/0xff000000 -j ACCEPT", "-A FORWARD -j DROP")
    tables = net.iptables(backend)
    install(tables, source, dispatch(source, [always(DROP)]), [4000, 4001])
    tables.restore(
        "*security\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p udp -m comment --comment fwd\nCOMMIT\n"
    )
    call("ip", "netns", "exec", net.fw, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    call("ip", "-n", net.peer, "route", "add", "10.99.2.0/24", "via", FW4)
    call("ip", "-n", net.fw, "route", "add", "10.99.2.0/24", "via", PEER4)
    with net.udp(net.peer) as sock, net.arriving(4001, 4):
        for _ in range(4):
            sock.sendto(b"x", ("10.99.2.9", 4001))
    assert tables.packets("--comment fwd") >= 4
    assert tables.packets("^-A FORWARD -j DROP") == 0


@pytest.mark.kernel
@BACKENDS
def test_packets_of_translated_connections_take_the_original_chain(
    net: Net, backend: Backend
) -> None:
    """Port 4001 is redirected to 4009, which the original chain accepts; the code says DROP."""
    nat = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp -m udp --dport 4001 -j REDIRECT"
    source = (
        text("-A INPUT -p udp -m udp --dport 4009 -j ACCEPT") + nat + " --to-ports 4009\nCOMMIT\n"
    )
    tables = net.iptables(backend)
    made = dispatch(source, [always(DROP), always(DROP)])
    install(tables, source, made, [4000, 4001, 4009])
    net.send(4001, 3)
    net.send(4009, 2)
    assert passed(tables, 4009) == 3


def test_conntrack_is_not_asked_where_no_nat_rule_rewrites_addresses() -> None:
    jumps = "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n"
    made = dispatch(text("-A INPUT -p tcp -j ACCEPT") + jumps, [always(ACCEPT), always(DROP)])
    assert "conntrack" not in made.add


@pytest.mark.kernel
@BACKENDS
@pytest.mark.parametrize("family", list(Family), ids=str)
def test_removal_leaves_the_table_as_it_was(net: Net, backend: Backend, family: Family) -> None:
    source = COPIED
    tables = net.iptables(backend, family)
    tables.restore(source)
    before = without_dates(tables.save())
    items = [item(1, kind=ItemKind.COPY, chain="first"), item(2, terminal=True)]
    made = dispatch(source, [always(Walk((0, 1), None))] * 20, items, family=family)
    tables.restore(made.add, "--noflush")
    during = tables.save()
    assert without_dates(ours.strip(during)) == before
    tables.restore(made.remove, "--noflush")
    assert without_dates(tables.save()) == before
    tables.restore(made.add, "--noflush")
    tables.restore(ours.edit(tables.save(), {}, ()), "--noflush")
    assert without_dates(tables.save()) == before
    assert not ours.leftovers(tables.save())


def without_dates(save: str) -> list[str]:
    return [line.split(" [")[0] for line in save.splitlines() if not line.startswith("#")]


@pytest.mark.kernel
@BACKENDS
def test_one_edit_replaces_an_older_dispatch(net: Net, backend: Backend) -> None:
    source = text("-A INPUT -j ACCEPT")
    tables = net.iptables(backend)
    install(tables, source, dispatch(source, [always(DROP), always(ACCEPT)]), [4000, 4001])
    newer = dispatch(source, [always(ACCEPT)])
    tables.restore(ours.edit(tables.save(), newer.chains, newer.jumps), "--noflush")
    fresh = ours.leftovers(tables.save())
    assert set(fresh.chains) == set(newer.chains)
    assert fresh.jumps == newer.jumps
    net.send(4001, 2)
    assert passed(tables, 4001) == 2


def test_names_fit_the_kernel_and_depend_on_content_only() -> None:
    items = [item(1, kind=ItemKind.COPY, chain="first"), item(2, terminal=True)]
    made = dispatch(COPIED, [always(Walk((0, 1), None))] * 20, items)
    again = dispatch(COPIED, [always(Walk((0, 1), None))] * 20, items)
    assert made == again
    assert all(ours.bears_our_name(name) and len(name) <= 28 for name in made.chains)


def test_uniform_functions_never_ask_for_the_connection_state() -> None:
    source = text("-A INPUT -j ACCEPT")
    made = dispatch(source, [always(ACCEPT), always(DROP)])
    assert "conntrack" not in made.add


def test_state_is_confirmed_for_every_walk_when_one_is_punted() -> None:
    source = text("-A INPUT -j ACCEPT")
    function = by_state(NEW=DROP, ESTABLISHED=ACCEPT, RELATED=ACCEPT, INVALID=PUNT, UNTRACKED=DROP)
    made = dispatch(source, [function])
    (rules,) = [rules for name, rules in made.chains.items() if name.startswith("BPF-F-")]
    assert rules[1:] == (
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-m conntrack --ctstate NEW,UNTRACKED -j DROP",
    )


def test_input_and_forward_are_merged_into_one_edit() -> None:
    source = text("-A INPUT -j ACCEPT")
    both = merge(
        [
            dispatch(source, [always(ACCEPT)]),
            dispatch(source, [always(ACCEPT), always(DROP)], chain="FORWARD"),
        ]
    )
    assert len(both.chains["BPF-INPUT"]) == 2
    assert len(both.chains["BPF-FORWARD"]) == 3
    assert [rule.split()[-1] for _, rule in both.jumps][-2:] == ["BPF-INPUT", "BPF-FORWARD"]


def test_the_most_travelled_code_has_a_jump_of_its_own_before_the_entries() -> None:
    source = text("-A INPUT -j ACCEPT")
    chains = ("INPUT", "FORWARD")
    both = merge([dispatch(source, [always(ACCEPT), always(DROP)], chain=name) for name in chains])
    assert [chain for chain, _ in both.jumps] == ["INPUT", "FORWARD", "INPUT", "FORWARD"]
    assert all("--mark 0x1000000/0xff000000 -j BPF-F-" in rule for _, rule in both.jumps[:2])
    dropping = dispatch(source, [always(DROP), always(ACCEPT)])
    assert [rule.split()[-1] for _, rule in dropping.jumps] == ["BPF-INPUT", "BPF-FORWARD"]


def test_with_many_interfaces_or_translated_packets_only_entries_are_jumped_to() -> None:
    source = text("-A INPUT -j ACCEPT")
    code = Code(1, Family.IPV4, "filter", "INPUT", always(ACCEPT))
    ruleset = read_text(source, family=Family.IPV4)
    plan = chain_plan(ruleset)
    many = render(ruleset, plan, [code], DEFAULT_MARK, [f"v{n}" for n in range(5)])
    nat = render(ruleset, plan, [code], DEFAULT_MARK, ["v1"], translated=True)
    assert not any("BPF-F-" in rule for made in (many, nat) for _, rule in made.jumps)


@pytest.mark.kernel
@BACKENDS
def test_what_the_jump_of_its_own_leaves_open_takes_the_original_chain(
    net: Net, backend: Backend
) -> None:
    """Returning from it must not end in the policy."""
    source = text("-A INPUT -p udp -m udp --dport 4001 -j ACCEPT")
    function = by_state(NEW=PUNT, ESTABLISHED=DROP, RELATED=DROP, INVALID=DROP, UNTRACKED=DROP)
    made = dispatch(source, [function])
    assert any("BPF-F-" in rule for _, rule in made.jumps)
    tables = net.iptables(backend)
    install(tables, source, made, [4000, 4001])
    net.send(4001, 3)
    assert passed(tables, 4001) == 3


def test_a_code_that_does_not_fit_the_field_is_refused() -> None:
    ruleset = read_text(text("-A INPUT -j ACCEPT"), family=Family.IPV4)
    code = Code(256, Family.IPV4, "filter", "INPUT", always(ACCEPT))
    with pytest.raises(RolloutError, match="does not fit"):
        render(ruleset, chain_plan(ruleset), [code], DEFAULT_MARK, ["v1"])


@pytest.mark.kernel
@BACKENDS
def test_a_dispatch_that_stands_is_left_alone_and_one_that_was_moved_is_not(
    net: Net, backend: Backend
) -> None:
    source = text("-A INPUT -j ACCEPT")
    iptables = net.iptables(backend)
    iptables.restore(source)
    wanted = dispatch(source, [always(DROP), always(ACCEPT)])
    other = dispatch(source, [always(ACCEPT)])
    with entered(net.fw):
        tables = Tables(Family.IPV4, backend)
        assert tables.install(tables.save(), wanted)
        made = Standing.of(tables.save(), wanted)
        assert not tables.install(tables.save(), wanted, made)
        assert tables.install(tables.save(), other, made)
        assert tables.install(tables.save(), wanted, Standing.of(tables.save()))
        for foreign in ("-I INPUT 1 -s 192.0.2.1 -j DROP", "-A BPF-INPUT -j ACCEPT"):
            iptables.restore(f"*filter\n{foreign}\nCOMMIT\n", "--noflush")
            assert tables.install(tables.save(), wanted, made)
            assert Standing.of(tables.save(), wanted) == made
