"""Rules that are in force: read whole from one backend, or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.tools import tool
from tests.ruleset.ruleset_kernel import in_namespace

pytestmark = pytest.mark.kernel

READ = """
exec "$1" - "$2" <<'END'
import sys
from bpfilter.errors import LiveReadError
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
from bpfilter.ruleset.writer import write
try:
    ruleset = read_live(Family(sys.argv[1]))
    print(ruleset.backend, *ruleset.warnings)
    print(write(ruleset, counters=True), end="")
except LiveReadError as error:
    print("refused", error)
END
"""


def live(script: str, directory: Path, family: Family = Family.IPV4) -> str:
    """What `read_live` gives in a namespace where `script` has run."""
    return in_namespace(script + READ, sys.executable, family.value, directory=directory)


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize("family", list(Family))
def test_each_backend_is_read_with_its_counters(
    family: Family, backend: Backend, tmp_path: Path
) -> None:
    hops = "-m ttl --ttl-eq" if family is Family.IPV4 else "-m hl --hl-eq"
    script = f"""
    {tool(family, backend, "restore")} -c <<END
*mangle
-A PREROUTING {hops} 1 -j DROP
COMMIT
*filter
:FORWARD DROP [6:7]
:user - [0:0]
[12:345] -A INPUT -p tcp -m tcp --dport 22 -j user
COMMIT
END
    """
    said = live(script, tmp_path, family)
    assert said.splitlines()[0] == backend
    assert ":FORWARD DROP [6:7]" in said
    # ip6tables-nft 1.8.9 does not store the counters of a rule it adds.
    counters = "[0:0]" if (family, backend) == (Family.IPV6, Backend.NFT) else "[12:345]"
    assert f"{counters} -A INPUT -p tcp -m tcp --dport 22 -j user" in said
    assert "*mangle" in said
    assert said.count("COMMIT") == 2


def test_a_namespace_without_rules_reads_as_the_default_backend_without_rules(
    tmp_path: Path,
) -> None:
    assert "-A" not in live("", tmp_path)


def test_rules_in_both_backends_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    said = live(
        "iptables-legacy -A INPUT -p tcp -j ACCEPT; iptables-nft -A INPUT -p udp -j ACCEPT",
        tmp_path,
    )
    assert said.startswith("refused both")
    assert "hint: move all rules into one of them" in said


@pytest.mark.parametrize(
    "native",
    [
        "nft add rule ip filter INPUT meta l4proto udp numgen inc mod 2 0 accept",
        "nft add set ip filter s '{type ipv4_addr;}'\n"
        "nft add rule ip filter INPUT ip saddr @s drop",
        "nft add chain ip filter x '{type filter hook input priority 5;}'",
        "iptables-nft -A INPUT -p tcp -m tcp --dport 22 -m tcp --dport 23",
    ],
)
def test_rules_that_are_not_printed_as_they_are_are_not_read_in_part(
    native: str, tmp_path: Path
) -> None:
    said = live(f"iptables-nft -A INPUT -p tcp -j ACCEPT; {native}", tmp_path)
    assert said.startswith("refused")


def test_words_longer_than_iptables_restore_takes_are_read(tmp_path: Path) -> None:
    u32 = "&&".join(["0=" + ",".join(["100:200"] * 10)] * 10)
    said = live(f"iptables-legacy -A INPUT -m u32 --u32 '{u32}'", tmp_path)
    assert "-m u32 --u32 0x0=0x64:0xc8" in said


def test_ipsets_are_listed_with_type_family_and_size(tmp_path: Path) -> None:
    script = """
    ipset create one hash:net
    ipset add one 10.0.0.0/8
    ipset create two hash:ip,port family inet6
    exec "$1" -c 'from bpfilter.ruleset.ipset import list_sets
for s in list_sets(): print(s.name, s.type, s.family, s.entries, s.references)'
    """
    assert in_namespace(script, sys.executable, directory=tmp_path).splitlines() == [
        "one hash:net ipv4 1 0",
        "two hash:ip,port ipv6 0 0",
    ]
