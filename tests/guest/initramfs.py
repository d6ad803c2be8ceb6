"""The first files of a guest: busybox, an init script, and the modules by which it sees others."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.guest.kernels import Kernel


def initramfs(
    work: Path,
    kernel: Kernel,
    root: Path,
    init: Path,
    modules: Sequence[str],
    files: Mapping[str, str],
) -> Path:
    """An image in `work` with `init` as /init; the `modules` lie in /modules in loading order.

    `root` is the kernel's unpacked package; `files` are put beside /init, by name.
    """
    tree = work / "initramfs"
    for name in ("bin", "modules", "proc", "sys", "dev", "host", "memory", "root"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    for index, module in enumerate(_in_order(kernel, root, modules)):
        (tree / "modules" / f"{index:02}-{module.name}").write_bytes(_unpacked(module))
    shutil.copy(init, tree / "init")
    (tree / "init").chmod(0o755)
    for name, text in files.items():
        (tree / name).write_text(text)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    image = work / "initramfs.img"
    with image.open("wb") as file:
        subprocess.run(
            ["cpio", "--create", "--format=newc", "--quiet"],
            cwd=tree, input=names.encode(), stdout=file, check=True,
        )  # fmt: skip
    return image


def _in_order(kernel: Kernel, root: Path, modules: Sequence[str]) -> list[Path]:
    found: dict[Path, None] = {}
    for name in modules:
        words = ["modprobe", "-d", str(root), "-S", kernel.release, "--show-depends", name]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found |= dict.fromkeys(
            Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod ")
        )
    return list(found)


def _unpacked(module: Path) -> bytes:
    if module.suffix == ".xz":
        return subprocess.run(["xz", "-dc", module], capture_output=True, check=True).stdout
    return module.read_bytes()
