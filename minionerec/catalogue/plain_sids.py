"""``sids.json`` read without a Python object for every item and code.

A million items are half a second this way, and eight seconds and as many lists through the JSON
reader. Only a text that is plain is read here, as this pipeline and most others write it: item ids
without escapes, codes without signs or fractions. Of anything else nothing is said, and whoever
asked reads it slowly.

Shapes: N items, L levels.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from minionerec.catalogue.compact import IntRows
from minionerec.experiment.files import read_json

KEY = b'"sids"'
SPACE = b" \t\r\n"
# What stands between two item ids: a colon, a list of codes, a comma. Possessive: no way back
GAP = rb"[ \t\r\n]*+"
CODE = GAP + rb"(?:0|[1-9][0-9]{0,6})" + GAP
CODES = GAP + rb":" + GAP + rb"\[" + CODE + rb"(?:," + CODE + rb")*+\]" + GAP
BETWEEN = re.compile(CODES + rb"(?:," + GAP + rb"\"" + CODES + rb")*+")
CONTROL = re.compile(rb"[\x00-\x1f]")


class PlainSids(NamedTuple):
    """The content of a ``sids.json``."""

    item_ids: list[str]
    codes: IntRows  # in the order of item_ids
    content: dict[str, Any]  # the whole file, with 0 for its sids


def read_plain_sids(raw: bytes) -> PlainSids | None:
    """Read the bytes of a ``sids.json``; None if they are not plain, or no such file's.

    >>> read_plain_sids(b'{"sids": {"x": [0, 1], "y": [2]}, "codebook_sizes": [3, 3]}').codes[0]
    (0, 1)
    """
    start = raw.find(KEY)
    opening = raw.find(b"{", start)
    closing = raw.find(b"}", opening)
    before = raw[:start]
    # With no backslash in the text, every quotation mark begins or ends a string
    is_plain = 0 < start < opening < closing and b"\\" not in raw and before.count(b"{") == 1
    if not is_plain or raw[start + len(KEY) : opening].strip(SPACE) != b":":
        return None
    try:
        content = read_json(raw[:opening] + b"0" + raw[closing + 1 :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("sids") != 0:
        return None
    # Pieces take turns: what is outside of strings, an item id, outside, ...
    pieces = raw[opening + 1 : closing].split(b'"')
    ids = b'"'.join(pieces[1::2])
    outside = b'"'.join(pieces[2::2])
    is_whole = len(pieces) % 2 == 1 and not pieces[0].strip(SPACE)
    if not is_whole or not BETWEEN.fullmatch(outside) or CONTROL.search(ids):
        return None
    try:
        item_ids = ids.decode().split('"')
    except UnicodeDecodeError:
        return None
    if len(set(item_ids)) < len(item_ids):
        return None
    return PlainSids(item_ids, _codes(outside), content)


def _codes(outside: bytes) -> IntRows:
    """The codes of all items, from what stands between their ids."""
    numbers = outside.translate(None, SPACE + b':[]"')
    flat = np.fromstring(numbers.decode(), dtype=np.int32, sep=",")
    # ``,,],,],,,],`` is left: an item of L codes is L characters, and a comma before the next one
    commas = np.frombuffer(outside.translate(None, SPACE + b':"[0123456789'), dtype=np.uint8)
    ends = np.flatnonzero(commas == ord("]"))
    lengths = np.diff(ends, prepend=-2) - 1  # (N,)
    longest = int(lengths.max())
    if len(flat) == longest * len(lengths):
        return IntRows(flat.reshape(-1, longest))
    table = np.full((len(lengths), longest), -1, dtype=np.int32)  # (N, L)
    table[np.arange(longest) < lengths[:, None]] = flat
    return IntRows(table)
