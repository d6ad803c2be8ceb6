"""Boots another kernel under QEMU on a copy-on-write view of this machine's files.

Software emulation only: it works in virtual machines as well, where hardware acceleration may hang.
A guest has no network interface but the ones that its tests make, and changes nothing outside.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guest.initramfs import initramfs
from tests.guest.kernels import GuestError, Kernel, root_of

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "depmod": "kmod",
    "setpriv": "util-linux",
}
MEMORY_MB = 2048
"""And one processor: where the host is busy, two emulated ones mostly wait for each other."""
_EXIT = re.compile(r"^guest exit (\d+)\s*$", re.MULTILINE)
_FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True, slots=True)
class Done:
    """A command's exit code and output; the code is None if the guest did not get to its end."""

    code: int | None
    output: str
    console: str


def missing_packages() -> list[str]:
    """Debian packages without which no guest boots here."""
    return sorted(package for tool, package in PACKAGES.items() if shutil.which(tool) is None)


def run(
    kernel: Kernel,
    command: str,
    *,
    seconds: float = 600,
    show: Callable[[str], object] | None = None,
) -> Done:
    """Run a bash command as root in a guest, in this tree; `show` gets its lines as they come.

    `BPFILTER_GUEST` is the kernel's name there. GuestError if QEMU or the kernel is not to be had.
    """
    if missing := missing_packages():
        raise GuestError(f"guests need: apt-get install {' '.join(missing)}")
    root = root_of(kernel)
    with tempfile.TemporaryDirectory(prefix="bpfilter-guest-") as directory:
        work = Path(directory)
        image = _initramfs(work, kernel, root, command)
        console = work / "console"
        with _qemu(kernel, root, image, console) as process:
            output = _lines(process, seconds, show)
        said = console.read_text(errors="replace") if console.exists() else ""
    found = _EXIT.search(output)
    return Done(int(found[1]) if found else None, _EXIT.sub("", output), said)


def _initramfs(work: Path, kernel: Kernel, root: Path, command: str) -> Path:
    environment = Path(sys.prefix).resolve()
    files = {
        "second": (HERE / "second.sh").read_text(),
        "command": command + "\n",
        "settings": f"GUEST={kernel.name} TREE={shlex.quote(str(TREE))} "
        f"ENVIRONMENT={shlex.quote(str(environment))}\n",
    }
    return initramfs(work, kernel, root, HERE / "init.sh", _FIRST_MODULES, files)


@contextmanager
def _qemu(
    kernel: Kernel, root: Path, image: Path, console: Path
) -> Iterator[subprocess.Popen[str]]:
    shared = "security_model=none,readonly=on"
    words = [
        "setpriv", "--pdeathsig", "KILL",
        "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
        "-smp", "1", "-m", str(MEMORY_MB), "-nic", "none", "-no-reboot",
        "-display", "none", "-monitor", "none",
        "-serial", f"file:{console}", "-serial", "stdio",
        "-kernel", str(root / f"boot/vmlinuz-{kernel.release}"), "-initrd", str(image),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check",
        "-virtfs", f"local,path=/,mount_tag=host,multidevs=remap,{shared}",
        "-virtfs", f"local,path={root}/lib/modules,mount_tag=modules,{shared}",
    ]  # fmt: skip
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _lines(
    process: subprocess.Popen[str], seconds: float, show: Callable[[str], object] | None
) -> str:
    """What the command prints, until the guest ends or its time is over."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if show is not None and not _EXIT.match(line):
                show(line.rstrip("\r\n"))
    finally:
        timer.cancel()
    return "".join(lines)
