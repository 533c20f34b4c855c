"""Plain text from what catalogues hold: entities, markup, halves of characters.

``clean_text`` is the only function that cleans item text. Cleaning twice changes nothing, so
prompts, embeddings and pages show the same text wherever they take it from.
"""

from __future__ import annotations

import html
import re

# The elements of HTML, those of old pages included: anything else in angle brackets is text.
HTML_NAMES = (
    "a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound "
    "big blink blockquote body br button canvas caption center cite code col colgroup data "
    "datalist dd del details dfn dialog dir div dl dt em embed fieldset figcaption figure "
    "font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe "
    "img input ins isindex kbd keygen label legend li link main map mark marquee menu "
    "menuitem meta meter nav nobr noframes noscript object ol optgroup option output p param "
    "picture pre progress q rp rt ruby s samp script section select small source span strike "
    "strong style sub summary sup svg table tbody td template textarea tfoot th thead time "
    "title tr track tt u ul var video wbr xmp "
)
HTML_TAGS = frozenset(HTML_NAMES.split())
# A space in front of "=" is allowed; "<b not bold>" is text, "<td nowrap>" is not.
FLAGS = frozenset(
    ("nowrap", "noshade", "compact", "disabled", "checked", "selected", "hidden", "async", "defer")
)
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:]*)((?:[\s/][^<>]*)?)>")
OFFICE_PREFIXES = ("o:", "w:", "v:", "m:", "st1:")  # <o:p> and the like, from word processors
BLOCKS = (
    (re.compile(r"<script\b", re.IGNORECASE), re.compile(r"</script\s*>", re.IGNORECASE)),
    (re.compile(r"<style\b", re.IGNORECASE), re.compile(r"</style\s*>", re.IGNORECASE)),
    (re.compile(r"<!--"), re.compile(r"-->")),
)
ESCAPED_AGAIN = re.compile(r"&(?:(?:amp|#38|#x26);)+", re.IGNORECASE)  # "&amp;amp;" is one "&"
MOST_ROUNDS = 8  # texts in the wild are escaped twice at most
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """One line of plain text.

    Entities resolved, scripts and HTML tags removed, white space collapsed.

    Text that was escaped twice is resolved twice. Only known HTML tags are removed, whatever else
    stands in angle brackets stays. A half of a character (a lone surrogate) becomes U+FFFD.

    >>> clean_text("Bolts &amp;amp; nuts<br>5 &lt; 6")
    'Bolts & nuts 5 < 6'
    >>> clean_text("C++ vector<T> guide, M8<length and width>20mm")
    'C++ vector<T> guide, M8<length and width>20mm'
    """
    if not text.isascii() and LONE_SURROGATE.search(text):
        text = whole_characters(text)
    for _ in range(MOST_ROUNDS):
        before = text
        if "&" in text:
            text = html.unescape(ESCAPED_AGAIN.sub("&", text))
        if "<" in text:
            text = TAG.sub(_space_for_a_tag, _without_blocks(text))
        text = " ".join(text.split())
        if text == before:
            break
    return text


def whole_characters(text: str) -> str:
    """Join surrogate pairs that stand apart and replace what is left of them by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _without_blocks(text: str) -> str:
    """Scripts, style sheets and comments replaced by a space; what is never closed stays.

    A search goes on where the last one ended, so the time grows with the length of the text only.
    """
    for opening, closing in BLOCKS:
        kept = []
        at = 0
        while start := opening.search(text, at):
            end = closing.search(text, start.end())
            if end is None:
                break
            kept.append(text[at : start.start()])
            at = end.end()
        kept.append(text[at:])
        text = " ".join(kept)
    return text


def _space_for_a_tag(match: re.Match[str]) -> str:
    """A space if this is an HTML tag, otherwise the text as it stands."""
    name = match[2].lower()
    if name.startswith(OFFICE_PREFIXES):
        return " "
    if name not in HTML_TAGS:
        return match[0]
    attributes = match[3].strip().rstrip("/").lower()
    is_tag = not attributes or "=" in attributes or FLAGS.issuperset(attributes.split())
    return " " if is_tag else match[0]
