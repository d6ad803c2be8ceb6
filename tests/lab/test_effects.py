"""What rules do besides verdicts is compared, too: logs, marks, dynamic matches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bpfilter.lab.effects import differences, moved, packets_by_words
from bpfilter.lab.verify import Request, verify
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

RULES = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
[5:200] -A INPUT -p tcp -m tcp --dport 80 -j LOG --log-prefix web
[3:120] -A INPUT -p tcp -m mark --mark 0x1/0xff -j ACCEPT
[9:400] -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
[4:160] -A INPUT -m mark --mark 0x2/0xff -j RETURN
[2:80] -A INPUT -p udp -j web
[1:40] -A web -p tcp -m tcp --dport 80 -j LOG --log-prefix web
COMMIT
"""
LOG = ("-p", "tcp", "-m", "tcp", "--dport", "80", "-j", "LOG", "--log-prefix", "web")
MARKED = ("-p", "tcp", "-m", "mark", "--mark", "0x1/0xff", "-j", "ACCEPT")


def test_equal_rules_are_added_up_and_static_verdicts_left_out() -> None:
    assert packets_by_words(read_text(RULES, family=Family.IPV4)) == {LOG: 6, MARKED: 3}


def test_differences_name_the_original_rules_alone() -> None:
    before = {LOG: 6, MARKED: 3}
    ours = ("-j", "MARK", "--set-xmark", "0x0/0xff000000")
    after = {LOG: 9, MARKED: 4, ours: 7}
    assert moved(before, after) == {LOG: 3, MARKED: 1, ours: 7}
    assert list(differences({LOG: 3, MARKED: 2}, moved(before, after))) == [(MARKED, 2, 1)]


@pytest.mark.kernel
@pytest.mark.parametrize("backend", list(Backend))
def test_a_dispatch_that_forgets_to_log_is_found(backend: Backend) -> None:
    def silent(plan, interfaces):
        marking = cutover(plan, interfaces)
        lines = marking.restore.splitlines(keepends=True)
        return replace(marking, restore="".join(line for line in lines if "-j LOG" not in line))

    ruleset = read_text(RULES, family=Family.IPV4)
    request = Request(ruleset, backend, packets=100, cutover=cutover)
    assert verify(request).holds
    report = verify(replace(request, cutover=silent))
    assert {found.run for found in report.divergences} == {"cutover"}
    assert all("-j LOG --log-prefix web" in found.cause for found in report.divergences)
    assert not report.holds
