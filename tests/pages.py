"""What tests see of a page: its elements, and what a browser draws of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


class Elements(HTMLParser):
    """Ids, addresses, labels of figures, and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.figures: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.by_figure: dict[str, list[list[str]]] = {}
        """Tables of the numbers of figures."""
        self._table = self._figure = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        if tag == "figure":
            self._figure = given["id"]
            self.figures.append(self._figure)
        self.alts += [given["aria-label"]] if tag == "svg" else []
        self.addresses += [given[key] for key in ("src", "href", "xlink:href") if key in given]
        if tag == "table":
            numbers = self._figure and f"numbers of {self._figure}"
            self._table = given.get("id", "") or numbers or "unnamed"
            self.tables[self._table] = []
            if numbers:
                self.by_figure[self._figure] = self.tables[self._table]
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = ""
        elif tag == "figure":
            self._figure = ""

    def handle_data(self, data: str) -> None:
        if self._table and self.tables[self._table] and self.tables[self._table][-1]:
            self.tables[self._table][-1][-1] += data.strip()


def ticks(page: str, figure: str) -> set[str]:
    """All texts inside the drawing of a figure."""
    (found,) = re.findall(rf'<figure id="{figure}">.*?</svg>', page, re.DOTALL)
    return {html.unescape(text).strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", found)}


PROBE = """<script>
const figures = {};
for (const figure of document.querySelectorAll("figure")) {
  const box = figure.querySelector("svg").getBoundingClientRect();
  const texts = [...figure.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
  const out = texts.filter(b => b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2
                                || b.bottom > box.bottom + 2);
  figures[figure.id] = [box.width, box.height, texts.length, out.length];
}
parent.postMessage(JSON.stringify({figures, wide: document.documentElement.scrollWidth > innerWidth}), "*");
</script>"""


@dataclass(frozen=True)
class Seen:
    """What a browser drew of a page."""

    figures: dict[str, list[float]]
    """Of each figure: width, height, number of texts, and how many of them stick out of it."""
    wide: bool
    """The page scrolls sideways."""

    def faults(self, names: Iterable[str]) -> list[str]:
        """What is wrong with the figures `names`: not drawn, too small, text that sticks out."""
        found = []
        for name in names:
            width, height, texts, out = self.figures[name]
            if width < 200 or height < 50 or texts < 4 or out:
                found.append(f"{name}: {self.figures[name]}")
        return found


def look(page: Path, width: int, folder: Path) -> Seen:
    """Have chromium draw `page`, `width` pixels wide and without network; `folder` is for its files."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here; on Debian: apt-get install chromium")
    text = page.read_text(encoding="utf-8").replace("style-src", "script-src 'unsafe-inline'; style-src")
    (folder / "probe.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    # In a frame, since a headless window is never narrower than 500.
    frame = f'<iframe src="probe.html" style="border:0; width:{width}px; height:4000px"></iframe>'
    script = "<script>onmessage = event => { document.body.dataset.seen = event.data; }</script>"
    (folder / "frame.html").write_text(f"<body>{script}{frame}</body>")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom"]
    command = [chromium, *options, (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, dom
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return Seen(seen["figures"], seen["wide"])
