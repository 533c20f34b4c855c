"""Cleaning of item text: what is markup, what is text, and that cleaning twice changes nothing.

python -m pytest tests/catalogue/test_text.py
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minionerec.catalogue.sources.text import clean_text


@pytest.mark.parametrize(
    "raw, text",
    [
        ("Black &amp;amp; Decker &amp;quot;5&amp;quot;", 'Black & Decker "5"'),
        ("Fish &amp;amp;amp;amp; Chips", "Fish & Chips"),
        ("a &#38;#38; b &#x26;lt; c", "a & b < c"),
        ("C++ vector<T> guide", "C++ vector<T> guide"),
        ("map<std::string, int>", "map<std::string, int>"),
        ("adapter M8<length and width>20mm", "adapter M8<length and width>20mm"),
        ("<Limited Edition> lamp", "<Limited Edition> lamp"),
        ("plain <3 you", "plain <3 you"),
        ("a <b not bold> c", "a <b not bold> c"),
        ("see <you@shop.com>", "see <you@shop.com>"),
        ("<P CLASS='x'>a</P>b<BR/>c<br />d", "a b c d"),
        ("<td nowrap>a</td><hr noshade/>b", "a b"),
        ('<a href="http://x/?a=1&amp;b=2">shop</a> now', "shop now"),
        ("<o:p>from Word</o:p>", "from Word"),
        ("x<script>alert('<b>')</script>y<style>p{}</style>z<!-- <p> -->!", "x y z !"),
        ("x<SCRIPT src=a>1</script >y", "x y"),
        ("open <script> without end", "open without end"),
        ("half \ud83d of it", "half \ufffd of it"),
        ("\ud83d\ude00 whole", "\U0001f600 whole"),
        ("&#xD83D; by number", "\ufffd by number"),
    ],
)
def test_known_markup_goes_and_everything_else_stays(raw, text):
    assert clean_text(raw) == text


TAGS = ["<b>", "</b>", "<T>", "<script>", "</script>", "<!--", "-->", "<", ">", "x", "=", "/"]
ENTITIES = ["&", "amp", ";", "amp;", "&amp;", "&lt;", "&gt;", "#38;", "&#38", " ", "\n"]
PIECES = st.sampled_from(TAGS + ENTITIES)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_cleaning_twice_changes_nothing(raw):
    once = clean_text(raw)
    assert clean_text(once) == once


@pytest.mark.parametrize(
    "piece", ["<script ", "<script>", "<!--", "<a =", "</script", "&amp;", "&#38;", "<b", "<a b=c "]
)
def test_the_time_grows_with_the_length_of_the_text_and_no_faster(piece):
    """64 KB of the beginning of a tag took minutes where every start was searched to the end."""
    text = piece * (64 * 1024 // len(piece))
    started = time.perf_counter()
    clean_text(text)
    assert time.perf_counter() - started < 2
