"""The package in dist/, another version of it, and a Debian that has it installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest.kernels import GuestError
from tests.package.debian import Root, unpack

DIST = Path(__file__).resolve().parents[2] / "dist"
LATER = "0.1.0+later"


def package() -> Path:
    """The one package in dist/; GuestError if there is none, or several."""
    found = list(DIST.glob("bpfilter_*.deb"))
    if len(found) != 1:
        raise GuestError(f"{DIST} has {len(found)} packages; remove them and run `make deb`")
    return found[0]


def later(directory: Path) -> Path:
    """The same package as a later version, with one module less."""
    tree = directory / "later"
    subprocess.run(["dpkg-deb", "--raw-extract", package(), tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("Version: 0.1.0", f"Version: {LATER}"))
    (gone,) = tree.glob("usr/lib/bpfilter/lib/python*/site-packages/bpfilter/cli/fuzz.py")
    gone.unlink()
    built = directory / "later.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, built],
        check=True, capture_output=True,
    )  # fmt: skip
    shutil.rmtree(tree)
    return built


def plain_root(directory: Path) -> Root:
    """Debian without the package in an empty directory; bpfilter.deb and later.deb are in /root."""
    unpack(directory)
    shutil.copy(package(), directory / "root/bpfilter.deb")
    later(directory / "root")
    return Root(directory)


@contextmanager
def installed(plain: Root, above: Path) -> Iterator[Root]:
    """That Debian with the package installed; what is written lies in `above`."""
    with plain.copied(above) as root:
        root.call("apt-get", "install", "--yes", "/root/bpfilter.deb")
        yield root
