"""A Debian 12 with the package, booted with systemd under QEMU; commands go over a serial line.

Software emulation, one processor, no network. Its disk is made anew for every machine and outlives
reboots; the kernel is one of tests/guest/kernels.py.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest.boot import MEMORY_MB, missing_packages
from tests.guest.initramfs import initramfs
from tests.guest.kernels import GuestError, Kernel, root_of
from tests.package.debian import Root

FILES = Path(__file__).resolve().parent / "files"
_MODULES = ("virtio_pci", "virtio_blk", "ext4", "9pnet_virtio", "9p")
_WANTED = ("network.service", "iptables.service", "agent.service")
_MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "fstrim.timer", "getty.target", "systemd-timesyncd.service",
)  # fmt: skip
_BOOT_SECONDS = 600.0
_PAUSE = 3.0
"""Between two looks, each of which takes the only processor from what is waited for."""


class Machine:
    """A running machine."""

    def __init__(self, channel: socket.socket, console: Path) -> None:
        self._console = console
        self._channel = channel
        self._lines = channel.makefile("rb")
        self._number = 0
        self._boot = self._hello()

    def run(self, command: str, seconds: float = 300) -> tuple[int, str]:
        """Exit code and output, errors included, of a bash command as root."""
        self._number += 1
        self._send(command)
        answer = self._answer(seconds)
        while answer.get("number") != self._number:
            answer = self._answer(seconds)
        return int(str(answer["code"])), str(answer["output"])

    def call(self, command: str, seconds: float = 300) -> str:
        """What a command printed; it has to succeed."""
        code, output = self.run(command, seconds)
        assert code == 0, f"{command}: {output}\n{self.journal()}"
        return output

    def until(self, command: str, seconds: float = 600) -> None:
        """Wait until a command succeeds."""
        end = time.monotonic() + seconds
        while self.run(command)[0] != 0:
            assert time.monotonic() < end, f"{command}: never\n{self.journal()}"
            time.sleep(_PAUSE)

    def reboot(self) -> None:
        """Reboot as an operator would; returns when commands are taken again."""
        self._number += 1
        self._send("systemctl reboot")
        before = self._boot
        while self._boot == before:
            self._boot = self._hello()

    def journal(self) -> str:
        """The end of the service's log."""
        return self.run("journalctl --unit bpfilterd --lines 40 --no-pager --output cat")[1]

    def _send(self, command: str) -> None:
        document = {"number": self._number, "command": command}
        self._channel.sendall(json.dumps(document).encode() + b"\n")

    def _hello(self) -> str:
        while "hello" not in (answer := self._answer(_BOOT_SECONDS)):
            pass
        return str(answer["hello"])

    def _answer(self, seconds: float) -> dict[str, object]:
        self._channel.settimeout(seconds)
        try:
            line = self._lines.readline()
        except TimeoutError:
            line = b""
        if not line:
            said = self._console.read_text(errors="replace")[-4000:]
            raise AssertionError(f"no answer within {seconds:.0f} s; the console:\n{said}")
        found: dict[str, object] = json.loads(line)
        return found


@contextmanager
def booted(kernel: Kernel, root: Root, work: Path) -> Iterator[Machine]:
    """Boot a copy of a root under a kernel; `work` is an empty directory."""
    if missing := missing_packages():
        raise GuestError(f"guests need: apt-get install {' '.join(missing)}")
    package = root_of(kernel)
    disk, console, channel = work / "disk", work / "console", work / "channel"
    _furnish(root.directory)
    with disk.open("wb") as file:
        file.truncate(2 << 30)
    subprocess.run(
        ["mkfs.ext4", "-q", "-O", "^metadata_csum", "-d", root.directory, disk], check=True
    )
    image = initramfs(work, kernel, package, FILES / "init.sh", _MODULES, {})
    process = subprocess.Popen(
        _words(kernel, package, image, disk, console, channel), stdin=subprocess.DEVNULL
    )
    try:
        yield Machine(_connected(channel), console)
    finally:
        process.kill()
        process.wait()


def _furnish(root: Path) -> None:
    units = root / "etc/systemd/system"
    for name in ("agent.py", "traffic.py", "network.sh", "rules"):
        shutil.copy(FILES / name, root / "opt")
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    for name in _WANTED:
        shutil.copy(FILES / name, units)
        (units / "multi-user.target.wants" / name).symlink_to(f"../{name}")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "bpfilterd.service.d").mkdir()
    shutil.copy(FILES / "bpfilterd.conf", units / "bpfilterd.service.d")
    settings = root / "etc/bpfilter/bpfilter.d"
    settings.mkdir(exist_ok=True)
    (settings / "guest.toml").write_text("[deployment]\nlease_seconds = 30.0\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("guest\n")
    (root / "lib/modules").mkdir(exist_ok=True)


def _words(
    kernel: Kernel, package: Path, image: Path, disk: Path, console: Path, channel: Path
) -> list[str]:
    modules = f"local,path={package}/lib/modules,mount_tag=modules"
    return [
        "setpriv", "--pdeathsig", "KILL",
        "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
        "-smp", "1", "-m", str(MEMORY_MB), "-nic", "none", "-display", "none", "-monitor", "none",
        "-serial", f"file:{console}",
        "-chardev", f"socket,id=agent,path={channel},server=on,wait=on", "-serial", "chardev:agent",
        "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
        "-virtfs", f"{modules},security_model=none,readonly=on,multidevs=remap",
        "-kernel", str(package / f"boot/vmlinuz-{kernel.release}"), "-initrd", str(image),
        "-append", "console=ttyS0 panic=0 mitigations=off no_timer_check",
    ]  # fmt: skip


def _connected(path: Path) -> socket.socket:
    end = time.monotonic() + 30
    channel = socket.socket(socket.AF_UNIX)
    while True:
        try:
            channel.connect(str(path))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return channel
