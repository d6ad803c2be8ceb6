"""`bpfilter eval` says of every frame what the loaded program says."""

from __future__ import annotations

import io
import json
import struct
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpfilter.cli import main
from tests.kernel.test_punts import MACS, TCP, UDP, ipv4, ipv6, options

pytestmark = pytest.mark.kernel

RULES = """*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i eth9 -p udp -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:services - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp -m limit --limit 5/min -j LOG
-A INPUT -p tcp -j services
-A INPUT -p udp -m statistic --mode random --probability 0.5 -j DROP
-A services -p tcp -m tcp --dport 22 -j ACCEPT
-A services -p tcp -m tcp --dport 23 -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -i eth0 -o eth1 -j DROP
-A FORWARD -m ttl --ttl-eq 63 -j DROP
-A OUTPUT -o eth5 -p udp -j DROP
COMMIT
"""


def tcp(port: int) -> bytes:
    return ipv4(TCP[:2] + struct.pack("!H", port) + TCP[4:], 6)


def write_pcap(path: Path, frames: list[bytes], link: int = 1) -> Path:
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    for frame in frames:
        data += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    path.write_bytes(data)
    return path


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(tmp_path: Path, *arguments: str, rules: str = RULES) -> Done:
    (tmp_path / "rules").write_text(rules)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main.run(
            ["eval", "--ruleset", str(tmp_path / "rules"), "--pcap", str(tmp_path / "x.pcap"),
             "--format", "jsonl", *arguments]
        )  # fmt: skip
    return Done(code, out.getvalue(), err.getvalue())


def evaluate(
    tmp_path: Path, frames: list[bytes], *arguments: str, rules: str = RULES
) -> list[dict[str, Any]]:
    write_pcap(tmp_path / "x.pcap", frames)
    done = run(tmp_path, *arguments, rules=rules)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(frames)))
    return lines


def rule(number: int, chain: str = "INPUT", table: str = "filter") -> dict[str, Any]:
    return {"table": table, "chain": chain, "number": number}


def test_every_outcome_of_input(tmp_path: Path) -> None:
    icmp = ipv4(bytes(8), 1)
    frames = [icmp, tcp(22), tcp(23), ipv4(UDP), ipv6(), icmp[:30], ipv4(fragment=1)]
    lines = evaluate(tmp_path, frames, "--chain", "INPUT", "--in-interface", "eth0")
    by_state = {
        "NEW": "DROP",
        "ESTABLISHED": "ACCEPT",
        "RELATED": "ACCEPT",
        "INVALID": "DROP",
        "UNTRACKED": "DROP",
    }
    assert (lines[0]["outcome"], lines[0]["by_state"]) == ("RESIDUAL", by_state)
    assert lines[0]["rule"] == rule(2)
    assert lines[0]["residual"] == [rule(2), rule(3), rule(0)]
    assert (lines[1]["outcome"], lines[1]["rule"]) == ("RESIDUAL", rule(4))
    assert lines[1]["residual"] == [rule(4)]
    assert lines[2]["residual"] == [rule(4), rule(2, "services")]
    assert "LOG" in lines[2]["reason"] or "limit" in lines[2]["reason"]
    assert "by_state" not in lines[1]
    for line, reason in ((lines[4], "no-slot"), (lines[5], "truncated"), (lines[6], "fragment")):
        assert (line["outcome"], line["rule"], line["reason"]) == ("PUNT", None, reason)


def test_the_interface_decides_and_need_not_exist(tmp_path: Path) -> None:
    (line,) = evaluate(tmp_path, [tcp(22)], "--chain", "INPUT", "--in-interface", "lo")
    assert (line["outcome"], line["rule"]) == ("ACCEPT", rule(1))


def test_forward_takes_both_interfaces_and_the_decremented_ttl(tmp_path: Path) -> None:
    arguments = ("--chain", "FORWARD", "--in-interface", "eth0", "--out-interface")
    (line,) = evaluate(tmp_path, [ipv4()], *arguments, "eth1")
    assert (line["outcome"], line["rule"]) == ("DROP", rule(1, "FORWARD"))
    (line,) = evaluate(tmp_path, [ipv4()], *arguments, "eth2")  # TTL 64 on the wire
    assert (line["outcome"], line["rule"]) == ("DROP", rule(2, "FORWARD"))


def test_output_and_prerouting_are_evaluated_too(tmp_path: Path) -> None:
    (line,) = evaluate(tmp_path, [ipv4()], "--chain", "OUTPUT", "--out-interface", "eth5")
    assert (line["outcome"], line["rule"]) == ("DROP", rule(1, "OUTPUT"))
    (line,) = evaluate(tmp_path, [ipv4()], "--chain", "OUTPUT", "--out-interface", "eth6")
    assert (line["outcome"], line["rule"]) == ("ACCEPT", rule(0, "OUTPUT"))
    assert line["reason"] == "policy of filter/OUTPUT"
    (line,) = evaluate(tmp_path, [ipv4()], "--chain", "PREROUTING", "--in-interface", "eth9")
    assert (line["outcome"], line["rule"]) == ("DROP", rule(1, "PREROUTING", "raw"))


def test_ipv6_rulesets_judge_ipv6_frames(tmp_path: Path) -> None:
    rules = """*filter
:INPUT ACCEPT [0:0]
-A INPUT -s ::1/128 -p udp --dport 53 -j DROP
COMMIT
"""
    walked = ipv6(options(17) + UDP, 0)
    lines = evaluate(
        tmp_path, [ipv6(), walked, ipv4()], "--family", "ipv6", "--in-interface", "x", rules=rules
    )
    assert [line["outcome"] for line in lines] == ["DROP", "DROP", "PUNT"]


def test_the_packet_type_follows_the_destination_address(tmp_path: Path) -> None:
    rules = "*filter\n:INPUT ACCEPT [0:0]\n" + "".join(
        f"-A INPUT -m pkttype --pkt-type {kind} -j DROP\n"
        for kind in ("unicast", "broadcast", "multicast")
    )
    unicast = bytes.fromhex("02aabbccddee")
    frames = [mac + ipv4()[6:] for mac in (unicast, b"\xff" * 6, b"\1\0\x5e\0\0\1")]
    lines = evaluate(tmp_path, frames, "--in-interface", "x", rules=rules + "COMMIT\n")
    assert [line["rule"]["number"] for line in lines] == [1, 2, 3]


def test_the_sender_of_the_frame_is_seen(tmp_path: Path) -> None:
    rules = (
        "*filter\n:INPUT ACCEPT [0:0]\n"
        "-A INPUT -m mac --mac-source 02:00:00:00:00:02 -j DROP\nCOMMIT\n"
    )
    other = MACS[:6] + bytes.fromhex("020000000003") + ipv4()[12:]
    lines = evaluate(tmp_path, [ipv4(), other], "--in-interface", "x", rules=rules)
    assert [line["outcome"] for line in lines] == ["DROP", "ACCEPT"]


def test_state_held_by_one_rule_instance_is_punted(tmp_path: Path) -> None:
    (line,) = evaluate(tmp_path, [ipv4(UDP)], "--in-interface", "eth0")
    assert line["outcome"] in ("PUNT", "RESIDUAL")
    if line["outcome"] == "RESIDUAL":
        assert line["by_state"]["NEW"] == "PUNT"


def test_other_link_types_exit_1(tmp_path: Path) -> None:
    write_pcap(tmp_path / "x.pcap", [ipv4()], link=101)
    done = run(tmp_path, "--chain", "INPUT", "--in-interface", "eth0")
    assert done.returncode == 1
    assert "only Ethernet" in done.stderr


def test_a_refused_ruleset_exits_2(tmp_path: Path) -> None:
    write_pcap(tmp_path / "x.pcap", [ipv4()])
    done = run(tmp_path, "--in-interface", "eth0", rules="*filter\n-A INPUT --nonsense\nCOMMIT\n")
    assert done.returncode == 2
    assert ":2:" in done.stderr


def test_a_chain_that_is_not_there_exits_64(tmp_path: Path) -> None:
    write_pcap(tmp_path / "x.pcap", [ipv4()])
    rules = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
    done = run(tmp_path, "--chain", "PREROUTING", rules=rules)
    assert done.returncode == 64
    assert "no chain PREROUTING in table raw" in done.stderr
