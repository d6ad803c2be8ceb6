"""Runs in the booted Debian: takes commands from the second serial line, a JSON document a line.

Says hello with the boot's id once it is there, so that the other end notices a reboot.
"""

import json
import os
import subprocess
import tty
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")


def main() -> None:
    line = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    answer(line, {"hello": BOOT.read_text().strip()})
    with os.fdopen(os.dup(line), "rb") as commands:
        for text in commands:
            asked = json.loads(text)
            done = subprocess.run(
                ["bash", "-c", asked["command"]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output = done.stdout.decode("utf-8", "replace")
            answer(line, {"number": asked["number"], "code": done.returncode, "output": output})


def answer(line: int, document: dict[str, object]) -> None:
    data = json.dumps(document).encode() + b"\n"
    while data:
        data = data[os.write(line, data) :]


if __name__ == "__main__":
    main()
