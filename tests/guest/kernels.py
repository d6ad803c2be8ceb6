"""Kernels that the guests boot: Debian's own packages, pinned by checksum and kept in a cache.

The cache is `$BPFILTER_GUESTS`, else `~/.cache/bpfilter-guests`; nothing goes into the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

_POOL = "pool/main/l/linux-signed-amd64"
_MIRRORS = (
    "http://deb.debian.org/debian",
    "http://security.debian.org/debian-security",
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One Debian kernel package; `name` is its series, as tests ask for it."""

    name: str
    release: str
    package: str
    sha256: str


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "6.12",
            "6.12.95+deb12-amd64",
            "linux-image-6.12.95+deb12-amd64_6.12.95-1~bpo12+1_amd64.deb",
            "5e524b782be67cb0d6a2e7b51816a2ac519e573ef7324b9a63a4124365653ecc",
        ),
        Kernel(
            "6.1",
            "6.1.0-50-amd64",
            "linux-image-6.1.0-50-amd64_6.1.176-1_amd64.deb",
            "7b5597492a0a65aee61985a492e6bcc3f2cde830072a0e3b3d8c7e1b90279bd3",
        ),
    )
}


class GuestError(Exception):
    """A guest cannot be made here; the message says what to do."""


def cache() -> Path:
    """Where packages and unpacked kernels are kept."""
    return Path(os.environ.get("BPFILTER_GUESTS", "~/.cache/bpfilter-guests")).expanduser()


def root_of(kernel: Kernel) -> Path:
    """The kernel's package, unpacked, with its modules indexed; fetched if it is not there yet.

    GuestError if no mirror has it or its checksum differs; then the cache is as it was.
    """
    root = cache() / kernel.release
    if root.exists():
        return root
    package = _package(kernel)
    unpacking = root.with_name(f"{root.name}.{os.getpid()}")
    try:
        for command in (
            ("dpkg-deb", "--extract", package, unpacking),
            ("depmod", "--basedir", unpacking, kernel.release),
        ):
            subprocess.run(command, check=True, capture_output=True)
        unpacking.rename(root)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
    return root


def _package(kernel: Kernel) -> Path:
    path = cache() / kernel.package
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _checksum(path) == kernel.sha256:
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _fetch(kernel.package, partial)
        if _checksum(partial) != kernel.sha256:
            raise GuestError(f"{kernel.package}: the checksum is not the one in {__file__}")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(package: str, target: Path) -> None:
    tried = []
    for mirror in _MIRRORS:
        address = f"{mirror}/{_POOL}/{package}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer, target.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            tried.append(f"{address}: {error}")
        else:
            return
    raise GuestError(
        "\n".join(tried) + f"\nDebian has moved on: pin a newer package in {__file__}, "
        f"or put this one into {cache()}"
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
