"""A ruleset whose every name and comment attacks somebody: a browser, a terminal, a table."""

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
SCRIPT = "<script>alert(1)</script>"
CELL = "a|b`c`*d*[e](http://f)"
OVERRIDE = "\u202egnp.exe"

RULES = f"""*filter
:INPUT DROP [10:1000]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:[red]x[/] - [0:0]
:<b>&' - [0:0]
[7:700] -A INPUT -m comment --comment "{SCRIPT}" -j [red]x[/]
[3:300] -A INPUT -p tcp -m tcp --dport 22 -m comment --comment "{ESCAPE}" -j <b>&'
[0:0] -A INPUT -p icmp -m limit --limit 5/sec -m comment --comment "{CELL}" -j ACCEPT
[0:0] -A INPUT -m comment --comment "{OVERRIDE}" -j LOG --log-prefix "{CELL}"
-A [red]x[/] -s 192.0.2.0/24 -j ACCEPT
-A [red]x[/] -s 192.0.2.1/32 -m comment --comment "{SCRIPT}" -j DROP
-A <b>&' -m comment --comment "{ESCAPE}" -j ACCEPT
COMMIT
"""
