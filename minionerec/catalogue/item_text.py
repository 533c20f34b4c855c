"""What is written about an item, put together in one place (``sids.text``).

Embeddings are made from it; the tasks that ask for the item of a title show it but for the
description, which has a task of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from minionerec.catalogue.compact import MadeOnRead
from minionerec.catalogue.sources.columns import BLOCK
from minionerec.catalogue.sources.text import clean_text


def item_texts(
    columns: pd.DataFrame | Mapping[str, Iterable[Any]], parts: Sequence[str]
) -> list[str]:
    """The text of every item: the parts that it has, in the order of ``parts``.

    Args:
        columns: a table of items by column.
        parts: of ``title``, ``brand``, ``categories`` and ``description``.

    Example:
        >>> columns = {"title": ["Toy Story", "Heat"], "categories": [["Animation", "Comedy"], []]}
        >>> item_texts(columns, ["title", "categories"])
        ['Toy Story Animation, Comedy', 'Heat']
    """
    texts = []
    for values in zip(*(columns[part] for part in parts), strict=True):
        written = [part_text(value) for value in values]
        texts.append(clean_text(" ".join(text for text in written if text)))
    return texts


class Stripped(MadeOnRead[str]):
    """The texts of a column without blanks around them; none is a Python object before it is read.

    >>> list(Stripped(pd.Series([" Heat", "Toy Story"])))
    ['Heat', 'Toy Story']
    """

    def __init__(self, column: pd.Series):
        self._texts = column.array

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._texts)

    def entry(self, number: int) -> str:
        """One text."""
        return self._texts[number].strip()

    def __iter__(self) -> Iterator[str]:
        """One text after the other."""
        for start in range(0, len(self), BLOCK):
            for text in self._texts[start : start + BLOCK].tolist():
                yield text.strip()


def part_text(value: Any) -> str:
    """One cell as text: a text as it is, a list of names with commas between them."""
    return value if isinstance(value, str) else ", ".join(value)


def shown_parts(parts: Sequence[str]) -> list[str]:
    """What prompts show of an item by name: its title, and what ``parts`` adds to it."""
    return ["title", *(part for part in parts if part in ("brand", "categories"))]
