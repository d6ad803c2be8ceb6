"""Runs in the booted Debian: numbered datagrams to an open and a closed port, until /run/enough.

`send` in the peer's namespace, `receive` in the firewall's; each prints what it counted.
"""

import select
import socket
import sys
import time
from pathlib import Path

FIREWALL, OPEN, CLOSED = "10.99.1.1", 5000, 5001
ENOUGH = Path("/run/enough")
READY = Path("/run/receiving")
SILENCE = 3.0


def send() -> None:
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        while not ENOUGH.exists():
            for port in (OPEN, CLOSED):
                link.sendto(b"%d" % sent, (FIREWALL, port))
            sent += 1
            time.sleep(0.05)
    print("sent", sent)


def receive() -> None:
    ends = {}
    for port in (OPEN, CLOSED):
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.bind((FIREWALL, port))
        ends[end] = port
    READY.touch()
    came = dict.fromkeys(ends.values(), 0)
    last = time.monotonic()
    while not ENOUGH.exists() or time.monotonic() - last < SILENCE:
        for end in select.select(list(ends), [], [], 0.5)[0]:
            end.recv(100)
            came[ends[end]] += 1
            last = time.monotonic()
    print("open", came[OPEN], "closed", came[CLOSED])


if __name__ == "__main__":
    {"send": send, "receive": receive}[sys.argv[1]]()
