"""The bpf file system, which systemd mounts on every host, and nobody on a bare machine."""

from __future__ import annotations

import os
import subprocess

from bpfilter.rollout import pins


def mount() -> None:
    """Mount it where pins belong, if it is not; it stays, as others may use it by then."""
    if os.geteuid() == 0 and not pins.available() and pins.FILE_SYSTEM.is_dir():
        subprocess.run(["mount", "-t", "bpf", "bpf", str(pins.FILE_SYSTEM)], check=False)
