# SPDX-License-Identifier: Apache-2.0
"""Prints what a Debian copyright file says of the Python packages in a directory.

The one argument is a site-packages directory; each package's own metadata names its licence, and
its licence files stay where they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions


def main() -> None:
    """Writes to standard output; ends with a message if a package names no licence."""
    found = sorted(distributions(path=[sys.argv[1]]), key=lambda each: each.name.lower())
    for each in found:
        if each.name != "bpfilter":
            print("\n".join(["", *stanza(each, sys.argv[1])]))


def stanza(package: Distribution, directory: str) -> Iterator[str]:
    tops = {str(path).split("/")[0] for path in package.files or () if ".." not in path.parts}
    prefix = "usr/lib/bpfilter/lib/python3.11/site-packages"
    yield "Files: " + "\n ".join(f"{prefix}/{top}*" for top in sorted(tops))
    author = package.metadata["Author"] or package.metadata["Author-email"]
    yield f"Copyright: {author or f'the authors of {package.name}'}"
    yield f"License: {licence(package)}"
    texts = package.metadata.get_all("License-File") or ["METADATA"]
    yield f" See {', '.join(texts)} of {package.name} {package.version}."


def licence(package: Distribution) -> str:
    """An SPDX expression, or in the package's own short words."""
    metadata = package.metadata
    classes = [
        line.split("::")[-1].strip()
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License ::")
    ]
    named = metadata["License-Expression"] or metadata["License"] or " or ".join(classes)
    if not named:
        sys.exit(f"{package.name} names no licence: look it up and say it in {__file__}")
    return re.sub(r"\s+", "-", named.strip().splitlines()[0]) if " AND " not in named else named


if __name__ == "__main__":
    main()
