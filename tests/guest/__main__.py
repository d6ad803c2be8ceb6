"""`make guests`: boots each kernel and runs there the tests that concern it.

Exit codes: 0 all passed, 1 a test failed or a guest broke off, 2 no guest can boot here.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

from tests.guest.boot import run
from tests.guest.kernels import KERNELS, GuestError, Kernel

SUITES = {
    "6.12": (
        "tests/guest/test_devices.py",
        "tests/guest/test_ipsec.py",
        "tests/guest/test_vrf.py",
        "tests/kernel/test_loading.py",
        "tests/kernel/test_attach.py",
        "tests/cases/test_foreign_changes.py",
        "tests/cases/test_mark.py",
    ),
    "6.1": (
        "tests/guest/test_old_kernel.py",
        "tests/ruleset/test_live.py",
        "tests/rollout/test_host.py",
    ),
}
"""What runs in which guest. Everything else does not depend on the kernel, or takes too long."""

_SECONDS = 3600.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make guests", description=__doc__)
    parser.add_argument("kernels", nargs="*", default=list(KERNELS), help=f"of {list(KERNELS)}")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for each guest")
    parser.add_argument("--run", metavar="COMMAND", help="instead of the tests")
    options = parser.parse_args(arguments)
    if unknown := set(options.kernels) - set(KERNELS):
        parser.error(f"no such kernel: {', '.join(sorted(unknown))}")
    failed = []
    try:
        for name in options.kernels:
            if not _passed(KERNELS[name], options.run or _pytest(name), options.seconds):
                failed.append(name)
    except GuestError as error:
        print(f"guests did not run: {error}", file=sys.stderr)
        return 2
    print(f"guests: failed on {', '.join(failed)}" if failed else "guests: all passed")
    return 1 if failed else 0


def _pytest(name: str) -> str:
    python = shlex.quote(sys.executable)
    options = "-p no:cacheprovider -p tests.guest.instant --timeout 900 -rf --tb=short -v"
    return f"{python} -m pytest {options} {' '.join(SUITES[name])}"


def _passed(kernel: Kernel, command: str, seconds: float) -> bool:
    print(f"guest {kernel.name} ({kernel.release}): {command}", flush=True)
    began = time.monotonic()
    done = run(kernel, command, seconds=seconds, show=lambda line: print(f"  {line}", flush=True))
    took = time.monotonic() - began
    if done.code is None:
        print(f"guest {kernel.name} did not get to its end in {took:.0f} s; its console:")
        print(done.console[-4000:])
    else:
        print(f"guest {kernel.name}: exit code {done.code} after {took:.0f} s", flush=True)
    return done.code == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
