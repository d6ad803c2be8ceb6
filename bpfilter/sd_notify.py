"""sd_notify(3): datagrams that tell systemd how the daemon is. Does nothing without systemd."""

from __future__ import annotations

import os
import socket


def notify(**fields: str | int) -> bool:
    """Send `FIELD=value` lines; true if somebody was there to hear them.

    Never raises: a daemon must not fail because its supervisor is slow.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    place = "\0" + address[1:] if address.startswith("@") else address
    text = "\n".join(f"{name}={value}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
            client.setblocking(False)
            client.connect(place)
            client.send(text.encode())
    except OSError:
        return False
    return True


def watchdog_seconds() -> float | None:
    """How often systemd wants WATCHDOG=1, halved for safety; None if it does not."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not wanted.isdigit() or process != str(os.getpid()):
        return None
    return int(wanted) / 2e6
