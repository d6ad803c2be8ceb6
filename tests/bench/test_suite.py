"""The suite's pure parts: workloads, ratios, goals, the check against a baseline, the drawing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.compare import Pace, Row, compare, rows_of
from bench.contenders import BACKENDS, prepare
from bench.facebook import translated
from bench.frames import FRAMES, Match, frame, headers
from bench.goals import Results, goals
from bench.history import document, load_baseline, ratios, regressions, save_baseline
from bench.network import Network
from bench.paired import Pair, Stream, kept_rate, share
from bench.plot import cost_plot
from bench.report import markdown
from bench.workloads import Kind, from_file, workload
from bpfilter.compiler.compile import compile_ruleset
from bpfilter.compiler.walk import walk
from bpfilter.demo.network import inside
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.read import read_text

HEAD = ("acl", 10_000, "ipv4", "drop", "random")


def measured(xdp: float, iptables: float) -> list[Row]:
    samples = {
        "XDP drop": [100.0, 110.0, 90.0],
        "iptables-legacy": [iptables] * 3,
        "bpf xdp": [xdp, xdp * 1.1, xdp * 0.9],
    }
    return rows_of(samples, HEAD)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_ruleset_compiles_and_is_repeatable(kind: Kind) -> None:
    made = workload(kind, 60, 3)
    assert made == workload(kind, 60, 3)
    plan = compile_ruleset(read_text(made.text), [("filter", "INPUT")])
    assert 40 <= sum(rule.startswith("-A") for rule in made.text.splitlines()) == made.rules
    assert plan.chains["filter", "INPUT"].flat.entries


def test_the_ipv6_rules_have_the_structure_of_the_ipv4_ones() -> None:
    four, six = (workload(Kind.FW, 200, 1, family) for family in Family)
    plans = [
        compile_ruleset(read_text(w.text, family=w.family), [("filter", "INPUT")])
        for w in (four, six)
    ]
    shapes = [
        [sorted(entry.box) for entry in plan.chains["filter", "INPUT"].flat.entries]
        for plan in plans
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.kernel
@pytest.mark.parametrize("kind", [Kind.GRID, Kind.BLOCKLIST])
def test_nft_and_ipset_take_what_stands_beside_the_rules(kind: Kind) -> None:
    made = workload(kind, 50, 1)
    assert made.nft and made.ipset
    for words, text in ((["nft", "-f", "-"], made.nft), (["ipset", "restore"], made.ipset[0])):
        done = subprocess.run(
            ["unshare", "--net", *words], input=text, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_packets_hit_the_first_or_the_last_rule_when_asked() -> None:
    flat = prepare(workload(Kind.GRID, 40, 1)).plan.chains["filter", "INPUT"].flat
    for match, entry in ((Match.FIRST, 0), (Match.LAST, 39)):
        packets = headers(flat, np.random.default_rng(1), 5, misses=0.0, match=match)
        assert {walk(flat, packet, 1)[1] for packet in packets} == {entry}


def test_ipv6_frames_are_as_long_as_ipv4_ones() -> None:
    flat = prepare(workload(Kind.ACL, 20, 1, Family.IPV6)).plan.chains["filter", "INPUT"].flat
    for packet in headers(flat, np.random.default_rng(1), 20):
        encoded = frame(packet, family=Family.IPV6)
        assert len(encoded) == FRAMES[Family.IPV6]
        assert encoded[12:14] == b"\x86\xdd"


def test_ratios_are_those_of_the_rounds() -> None:
    row = next(row for row in measured(150.0, 30_000.0) if row.path == "bpf xdp")
    assert row.ratio_to_xdp_drop == pytest.approx(1.5)
    assert row.ratio_to_iptables == pytest.approx(1 / 200)
    assert row.ratio_to_nft is None


def test_goals_are_met_missed_or_not_measured() -> None:
    found = {goal.what: goal for goal in goals(Results(rows=measured(150.0, 20_000.0)))}
    assert found["XDP drop, 10 000 rules, access-list"].met
    assert not found["XDP drop, 10 000 rules, access-list"].stretched
    assert found["faster than iptables-legacy, 10 000 rules"].met is False
    assert found["established TCP in enforce, against no filter"].met is None
    text = markdown(measured(150.0, 20_000.0), [], list(found.values()), "Run")
    assert "MISSED" in text and "not measured" in text


def test_a_path_is_slower_only_beyond_noise(tmp_path: Path) -> None:
    stored = tmp_path / "baseline.json"
    save_baseline(measured(150.0, 30_000.0), stored)
    before = load_baseline(stored)
    assert not list(regressions(ratios(measured(155.0, 30_000.0)), before))
    (slower,) = regressions({next(iter(before)): (2.9, 0.01)}, {next(iter(before)): (1.5, 0.01)})
    assert slower.now == 2.9
    noisy = {key: (ratio * 1.2, 0.2) for key, (ratio, _) in before.items()}
    assert not list(regressions(noisy, before))


def test_the_plot_has_a_line_for_every_path() -> None:
    rows = [*measured(150.0, 30_000.0)]
    drawing = ElementTree.fromstring(cost_plot(rows, "acl < fw"))
    texts = [element.text for element in drawing.iter() if element.tag.endswith("text")]
    assert {"XDP drop", "bpf xdp", "iptables-legacy"} <= set(texts)
    assert cost_plot([], "nothing") == ""


def test_rules_in_the_language_of_facebook_bpfilter() -> None:
    text = workload(Kind.GRID, 2, 1).text
    lines = translated(text, 7).splitlines()
    assert lines[0] == "chain bench BF_HOOK_XDP{ifindex=7} DROP"
    assert "ip4.daddr eq 10.0.0.1" in lines[2]
    assert lines[2].endswith("meta.l4_proto eq udp udp.dport eq 2 counter DROP")


def test_a_file_of_iptables_save_is_a_workload(tmp_path: Path) -> None:
    file = tmp_path / "own.rules"
    file.write_text(workload(Kind.DOCKER, 20, 1).text)
    assert from_file(file).rules == 20


@pytest.mark.kernel
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("dropped", [True, False])
def test_all_contenders_judge_the_same_packets(dropped: bool, family: Family) -> None:
    pace = Pace(seconds=0.001, rounds=1, packets=64)
    with Network() as network:
        rows = compare(network, workload(Kind.ACL, 30, 1, family), dropped=dropped, pace=pace)
    paths = {row.path for row in rows}
    assert {"plain nft", "iptables-legacy", "bpf dispatch nft"} <= paths
    assert ("bpf xdp" in paths) == dropped
    assert all(row.ns_per_packet > 0 for row in rows)


def test_paired_rounds_tell_or_leave_it_open() -> None:
    """Nine rounds: the second smallest and second largest bound the median (sign test, 96 %)."""
    base = [10.0] * 9
    ratios = [0.9, 0.98, 0.98, 0.985, 0.99, 0.99, 1.0, 1.0, 1.2]
    kept = share([10 * ratio for ratio in ratios], base)
    assert kept is not None
    assert (kept.median, kept.low, kept.high) == pytest.approx((0.99, 0.98, 1.0))
    assert kept.keeps(0.97) is True
    assert kept.keeps(0.985) is None
    assert kept.keeps(1.01) is False
    assert share(base[:5], base[:5]) is None, "five rounds bound nothing"
    six = share([9.0, 10, 10, 10, 10, 11], base[:6])
    assert six is not None
    assert (six.low, six.high) == pytest.approx((0.9, 1.1))


def test_a_stream_is_judged_by_processor_time_and_kept_in_the_history() -> None:
    """The rates are those of a busy machine and say nothing; the costs say it plainly."""
    noisy = [5.0, 9.0, 3.0, 7.0, 6.0, 4.0, 8.0]
    base = [Stream(rate, 0.10) for rate in noisy]

    def paired(ours: list[Stream]) -> list[Pair]:
        return [Pair(one, other) for one, other in zip(ours, base, strict=True)]

    turns = {
        "no filter": paired(base),
        "enforce": paired([Stream(rate, 0.102) for rate in reversed(noisy)]),
        "shadow": paired([Stream(rate, rate) for rate in noisy]),
    }
    kept = kept_rate(turns["enforce"])
    assert kept is not None
    assert kept.keeps(0.97) is None
    uneven = turns | {"no filter": paired([Stream(rate, 0.104) for rate in noisy])}
    assert not any(g.met is not None for g in goals(Results(streams=uneven)) if "TCP" in g.what)
    run = Results(streams=turns)
    met = {goal.what: goal.met for goal in goals(run) if "established TCP" in goal.what}
    assert list(met.values()) == [False, None, True], "shadow, canary (not measured), enforce"
    assert (
        json.loads(json.dumps(document(run, 1)))["streams"]["enforce"][0]["ours"]["cost"] == 0.102
    )


@pytest.mark.kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_filter_that_is_cleared_drops_nothing(backend: str) -> None:
    """A policy outlives its rules in legacy, and would judge the packets of the next path."""
    with Network() as network:
        network.restore(backend, "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j DROP\nCOMMIT\n")
        network.clear(backend)
        with inside(network.filter):
            done = subprocess.run([f"iptables-{backend}-save"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DROP" not in done.stdout
