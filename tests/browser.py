"""What tests of pages share: reading one as a browser would, and opening one in headless Chromium."""

from __future__ import annotations

import html
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

# A title that tries to leave its cell, to run, to be a template, and to turn the rest of its line
# round.
NASTY = """</td><script>alert("1")</script> & 'co' <b> {{ 7 * 7 }} \u202eabc"""


class Links(HTMLParser):
    """What a browser makes of a page.

    Attributes:
        fetched: everything that it would fetch.
        scripts: number of scripts.
        open: tags that are open at the end.
        texts: pieces of text, as people read them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str | None] = []
        self.scripts = 0
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for key, value in attrs if key in ("src", "href") and tag != "a"]
        self.scripts += tag == "script"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(path: Path) -> tuple[str, Links]:
    text, links = path.read_text(encoding="utf-8"), Links()
    links.feed(text)
    links.close()
    return text, links


def browse(page: Path, folder: Path, width: int, action: str) -> str:
    """Open a page in headless Chromium; returns what it printed."""
    profile = folder / f"profile-{width}-{page.stem}-{action[2:6]}"
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--window-size={width},2400",
        action,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def widths(page: Path, folder: Path, width: int) -> tuple[int, int]:
    """Pixels that a page takes, and that the window has: wider, and the page as a whole scrolls
    sideways.
    """
    probe = folder / "probe.html"
    # In a frame: Chromium's own windows are at least 500 pixels wide
    inside = html.escape(page.read_text(encoding="utf-8"))
    probe.write_text(
        f'<title></title><iframe id="page" width="{width}" height="800" frameborder="0" srcdoc="{inside}"></iframe>'
        "<script>onload = () => { const page = document.getElementById('page'); document.title = "
        "page.contentDocument.documentElement.scrollWidth + ' of ' + page.contentWindow.innerWidth }</script>",
        encoding="utf-8",
    )
    needed, there = re.search(
        r"<title>(\d+) of (\d+)</title>", browse(probe, folder, width, "--dump-dom")
    ).groups()
    return int(needed), int(there)
