"""What a page holds that could act."""

from __future__ import annotations

import html.parser
import re

HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Tags(html.parser.HTMLParser):
    """Counts elements, and notes what may act: scripts, handlers, links that leave the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.active: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag in ("script", "iframe", "object", "img", "link", "form", "b"):
            self.active.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style" or "javascript:" in (value or ""):
                self.active.append(f"{tag} {name}")
            if name in ("href", "src") and not (value or "").startswith("#"):
                self.active.append(f"{tag} {name}={value}")
