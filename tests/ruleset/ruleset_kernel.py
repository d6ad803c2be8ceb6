"""What tests against real iptables share: a ruleset, and a throwaway namespace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

OURS = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
COMMIT
*filter
:INPUT DROP [0:0]
:user - [0:0]
-A INPUT -s 10.0.0.0/255.0.255.0 ! -i eth+ -p tcp -m tcp ! --sport 1:9 --syn -j user
-A INPUT -p icmp -m icmp --icmp-type 3/4 -m limit --limit 5/min\
 -j LOG --log-prefix "odd \\"one\\": "
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "a b" -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,80:90 -g user
-A user -m mac --mac-source 00:11:22:33:44:55 -j RETURN
-A user -m recent --update --seconds 60 --name x --mask 255.255.255.255 --rsource -j DROP
-A user -m addrtype --dst-type LOCAL -m pkttype --pkt-type unicast -j REJECT
COMMIT
"""


def in_namespace(script: str, *arguments: str, directory: Path) -> str:
    """Run a shell script in a throwaway network namespace; its output."""
    environment = {**os.environ, "XTABLES_LOCKFILE": str(directory / "lock")}
    command = ["unshare", "--net", "sh", "-ec", script, "sh", *arguments]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "surrogateescape")
