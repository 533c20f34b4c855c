"""Filters as people say them, ``where={"brand": ["Bosch"], "price": [5, 20]}``, as sets of items.

A column is a text (one of the values), a list of texts such as ``categories`` (at least one of the
values), or a number (low and high, both included; None: open).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minionerec.errors import UserError

MOST_GUESSED = 10_000  # values among which a near one is looked for: of more it takes seconds
READERS: dict[str, Callable[[Path, dict[str, type]], pd.DataFrame]] = {
    ".csv": lambda path, types: pd.read_csv(path, dtype=types),
    ".tsv": lambda path, types: pd.read_csv(path, dtype=types, sep="\t"),
    ".jsonl": lambda path, types: pd.read_json(path, dtype=types, lines=True),
    ".parquet": lambda path, _: pd.read_parquet(path),
}
Condition = Sequence[Any]
Where = Mapping[str, Condition]


class ItemFilters:
    """The columns that items may be filtered by.

    Args:
        items: the catalogue, one row per item index.
        attributes: further columns, such as prices and stock, with an ``item_id``. Items that it
            lacks match no condition on them; items that the catalogue lacks are not looked at.
    """

    def __init__(self, items: pd.DataFrame, attributes: pd.DataFrame | None = None):
        self._table = items
        if attributes is not None:
            by_id = attributes.set_index("item_id").reindex(items["item_id"])
            self._table = items.copy(deep=False)
            for name in by_id.columns:
                self._table[name] = by_id[name].to_numpy()
        item_ids = items["item_id"].tolist()
        # A dictionary: pandas looks a few texts up by going through all that it holds
        self._index = {item_id: item for item, item_id in enumerate(item_ids)}
        self.digest = ""  # of the further columns
        if attributes is not None:
            rows = pd.util.hash_pandas_object(attributes.astype(str), index=False)
            self.digest = hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()
        # Made when a column is first asked for: most never are
        self._numbers: dict[str, np.ndarray] = {}
        self._values: dict[str, dict[str, np.ndarray]] = {}

    def allowed(
        self,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        where: Where | None = None,
    ) -> np.ndarray | None:
        """``(N,)`` bool, the items that all three leave; None where there is no filter.

        Args:
            allow: the only items that may be recommended.
            deny: items that may not be.
            where: column -> condition; an item must meet all of them.

        Raises:
            UserError: an id, a column or a value is unknown, or a condition is none.
        """
        if allow is None and not deny and not where:
            return None
        allowed = np.ones(len(self._index), dtype=bool)
        if allow is not None:
            allowed[:] = False
            allowed[self.positions("allow", allow)] = True
        for column, condition in (where or {}).items():
            allowed &= self._matching(column, condition)
        if deny:
            allowed[self.positions("deny", deny)] = False
        return allowed

    def positions(self, name: str, ids: Collection[str]) -> np.ndarray:
        """Item indexes of some ids, in time that does not grow with the catalogue.

        Args:
            name: what the ids are, for the message.
            ids: of items.

        Raises:
            UserError: one is unknown.
        """
        found = [self._index.get(item_id, -1) for item_id in ids]
        if -1 in found:
            unknown = next(item_id for item_id in ids if item_id not in self._index)
            raise UserError(
                f"{name}: {found.count(-1)} of {len(found)} ids are not in the catalogue: "
                f"{str(unknown)[:60]!r}; ids look like '{next(iter(self._index))}'"
            )
        return np.array(found, dtype=np.int64)

    def _matching(self, column: str, condition: Condition) -> np.ndarray:
        where = f"where.{str(column)[:60]}"
        if column not in self._table.columns:
            raise UserError(
                f"{where}: there is no such column; expected one of "
                f"{', '.join(map(str, self._table.columns))}"
            )
        if isinstance(condition, str) or not isinstance(condition, Sequence):
            raise UserError(f"{where}: got {condition!r:.60}, expected a list")
        if self._is_number(column):
            return self._between(where, column, condition)
        allowed = np.zeros(len(self._table), dtype=bool)
        items_of = self._items_of(column)
        for value in condition:
            if str(value) not in items_of:
                known = items_of if len(items_of) <= MOST_GUESSED else ()
                near = difflib.get_close_matches(str(value)[:200], known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"{where}: no item has {value!r:.60}{hint}")
            allowed[items_of[str(value)]] = True
        return allowed

    def _is_number(self, column: str) -> bool:
        values = self._table[column]
        return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)

    def _between(self, where: str, column: str, condition: Condition) -> np.ndarray:
        is_end = [end is None or (isinstance(end, int | float) and end == end) for end in condition]
        if len(condition) != 2 or not all(is_end):
            raise UserError(
                f"{where}: got {list(condition)!r:.60}, expected [low, high], numbers or null"
            )
        low, high = condition
        if column not in self._numbers:
            self._numbers[column] = self._table[column].to_numpy(dtype=float)
        numbers = self._numbers[column]
        # A missing number is below and above nothing
        matching = ~np.isnan(numbers)
        if low is not None:
            matching &= numbers >= low
        if high is not None:
            matching &= numbers <= high
        return matching

    def _items_of(self, column: str) -> dict[str, np.ndarray]:
        """Value -> item indexes."""
        if column not in self._values:
            values = pd.Series(self._table[column].to_numpy(), dtype=object)
            single = values.explode().dropna().astype(str)
            self._values[column] = {
                str(value): rows.to_numpy() for value, rows in single.groupby(single).groups.items()
            }
        return self._values[column]


def read_attributes(file: Path) -> pd.DataFrame:
    """A table with an ``item_id`` and what items may be filtered by besides.

    Raises:
        UserError: it cannot be read, or has no ``item_id``, or one twice.
    """
    table = read_table(file, ("item_id",))
    if "item_id" not in table.columns:
        raise UserError(f"{file}: has no column item_id; it has {', '.join(map(str, table))}")
    repeated = table["item_id"].duplicated()
    if repeated.any():
        raise UserError(
            f"{file}: item '{table['item_id'][repeated].iloc[0]}' is there twice; keep one row"
        )
    return table


def read_table(file: Path, texts: Sequence[str]) -> pd.DataFrame:
    """A .csv, .tsv, .jsonl or .parquet file; the columns of ``texts`` are ids, whatever they hold.

    Raises:
        UserError: it cannot be read.
    """
    if file.suffix not in READERS:
        raise UserError(f"{file}: expected a file ending in {', '.join(READERS)}")
    try:
        return READERS[file.suffix](file, dict.fromkeys(texts, str))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be read as {file.suffix[1:]} ({reason})") from error
