"""Pinned links: what lets a later process find, take away or outlive this one's programs.

One directory per network namespace, /sys/fs/bpf/bpfilterd/net-<inode>, with one link per
interface. Where no bpf file system is mounted there, nothing is pinned: the links then end with
the process, which is safe as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import Structure, c_uint32
from pathlib import Path

from bpfilter.kernel.syscall import LINK_DETACH, KernelCallFailed, bpf, object_info, open_pin, pin
from bpfilter.rollout.journal import namespace_id

FILE_SYSTEM = Path("/sys/fs/bpf")
ROOT = FILE_SYSTEM / "bpfilterd"
_INTERFACE = slice(16, 20)
"""Where struct bpf_link_info holds the interface of a tcx link: 0 once it is gone."""


class _Detach(Structure):
    _fields_ = (("link", c_uint32),)


LINK, EARLY = "link", "early"
"""Kinds of links: of the program that classifies, of one that drops before it."""


def available() -> bool:
    """Whether a bpf file system is mounted where pins belong."""
    kind = ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mounted, _, described = line.partition(" - ")
        if mounted.split()[4] == str(FILE_SYSTEM):
            kind = described.split()[0]
    return kind == "bpf"


def directory() -> Path:
    """The pins of the current network namespace."""
    return ROOT / namespace_id()


def pin_link(descriptor: int, interface: str, kind: str = LINK) -> bool:
    """Pin the link of an interface, in place of an older pin; false if nothing can be pinned.

    An interface can have one link of each kind.
    """
    if not available():
        return False
    place = directory()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _link_path(interface, kind)
    path.unlink(missing_ok=True)
    pin(descriptor, path)
    return True


def _link_path(interface: str, kind: str) -> Path:
    return directory() / f"{kind}-{interface.replace('.', '%')}"


def unpin_link(interface: str, kind: str = LINK) -> None:
    """Forget the pin of one interface's link."""
    _link_path(interface, kind).unlink(missing_ok=True)
    _remove_directories()


def link_id(descriptor: int) -> int:
    """The kernel's number of a link (struct bpf_link_info: type, id)."""
    return int.from_bytes(object_info(descriptor)[4:8], "little")


def pinned_links() -> dict[Path, int]:
    """The pinned links of the current network namespace, with their numbers."""
    place = directory()
    found = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        with _opened(path) as descriptor:
            found[path] = link_id(descriptor)
    return found


def open_links() -> dict[str, int]:
    """Descriptors of the pinned links by interface, those whose interface is gone left out.

    The caller closes them.
    """
    found = {}
    for path in pinned_links():
        if not path.name.startswith("link-"):
            continue
        descriptor = open_pin(path)
        if link_interface(descriptor):
            found[path.name.removeprefix("link-").replace("%", ".")] = descriptor
        else:
            os.close(descriptor)
    return found


def link_program(descriptor: int) -> int:
    """The kernel's number of the program that a link runs (struct bpf_link_info)."""
    return int.from_bytes(object_info(descriptor)[8:12], "little")


def link_interface(descriptor: int) -> int:
    """The index of the interface that a tcx link is at; 0 once it is gone."""
    return int.from_bytes(object_info(descriptor)[_INTERFACE], "little")


def prune() -> tuple[Path, ...]:
    """Remove pins of links whose interface is gone, of any network namespace; says which."""
    removed = []
    for path in sorted(path for kind in (LINK, EARLY) for path in ROOT.glob(f"net-*/{kind}-*")):
        try:
            with _opened(path) as descriptor:
                alive = any(object_info(descriptor)[_INTERFACE])
        except KernelCallFailed as error:
            if error.errno == errno.ENOENT:  # another process was faster
                continue
            raise
        if not alive:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
                ROOT.rmdir()
            removed.append(path)
    return tuple(removed)


def detach_early() -> None:
    """Detach what another process left of early programs in the current network namespace."""
    for path in pinned_links():
        if path.name.startswith(f"{EARLY}-"):
            detach_pinned(path)


def unpin() -> None:
    """Forget the pins of the current network namespace; open links stay attached."""
    for path in pinned_links():
        path.unlink(missing_ok=True)
    _remove_directories()


def detach_pinned(path: Path) -> None:
    """Detach a pinned link, whoever holds it, and remove the pin."""
    with _opened(path) as descriptor:
        try:
            bpf(LINK_DETACH, _Detach(link=descriptor), f"detach {path}")
        except KernelCallFailed as error:
            if error.errno not in (errno.ENODEV, errno.ENOLINK, errno.EINVAL):
                raise
    path.unlink(missing_ok=True)
    _remove_directories()


def _remove_directories() -> None:
    with suppress(OSError):
        directory().rmdir()
        ROOT.rmdir()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = open_pin(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
