"""A minimal Debian 12 in a directory: made once by debootstrap, kept as a tarball, never changed.

It has systemd and what the package depends on, nothing else: no compiler, no pip. The tarball is in
the guests' cache; programs run in it with a network namespace of their own, so without the network.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest.kernels import GuestError, cache

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
PACKAGES = (
    "iproute2", "iptables", "kmod", "libbpf1", "libgcc-s1", "libstdc++6", "nftables", "python3",
    "systemd", "systemd-sysv", "zlib1g",
)  # fmt: skip
_ENTER = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs run "$root/run"
mount --rbind /dev "$root/dev"
mkdir "$root/run/lock"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "$@"
"""


def tarball() -> Path:
    """The root as a tarball, made if it is not there yet; GuestError if that fails."""
    path = cache() / f"{SUITE}.tar.gz"
    if path.exists():
        return path
    if shutil.which("debootstrap") is None:
        raise GuestError("a Debian root needs: apt-get install debootstrap")
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f"{SUITE}.making")
    try:
        options = ("--variant=minbase", f"--include={','.join(PACKAGES)}")
        _call("debootstrap", *options, SUITE, str(making), MIRROR)
        shutil.rmtree(making / "var/cache/apt/archives")
        shutil.rmtree(making / "var/lib/apt/lists")
        _call("tar", "-C", str(making), "-czf", f"{path}.new", ".")
        Path(f"{path}.new").rename(path)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return path


def unpack(directory: Path) -> None:
    """Put a root into an empty directory."""
    _call("tar", "-C", str(directory), "-xzf", str(tarball()))


class Root:
    """A Debian root in a directory; what runs in it sees its files and no network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """A command as root, in namespaces (mounts, network, processes) that end with it."""
        apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        line = [*apart, "sh", "-c", _ENTER, "enter", str(self.directory), *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=seconds)

    def call(self, *words: str, seconds: float = 300) -> str:
        """What a command printed, errors included; it has to succeed."""
        done = self.run(*words, seconds=seconds)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def copied(self, above: Path) -> Iterator[Root]:
        """The same root for writing; what is written lies in `above` and goes with it."""
        for name in ("changed", "work", "root"):
            (above / name).mkdir()
        layers = f"lowerdir={self.directory},upperdir={above}/changed,workdir={above}/work"
        _call("mount", "-t", "overlay", "-o", layers, "overlay", str(above / "root"))
        try:
            yield Root(above / "root")
        finally:
            _call("umount", str(above / "root"))


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise GuestError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
