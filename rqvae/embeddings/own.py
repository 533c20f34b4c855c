"""Vectors that a team has already (``sids.embeddings``): of images, of collaborative filtering.

They replace the text embedding, or stand beside it with a weight ``w``: an item's vector is then
``[sqrt(w) * own, sqrt(1 - w) * text]`` with both of length 1, so that the squared distance of two
items is ``w`` times that of their own vectors and ``1 - w`` times that of their texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minionerec.catalogue.sources.cells import read_id
from minionerec.errors import UserError, relative_to
from minionerec.experiment.files import map_array

ROWS_AT_ONCE = 16_384  # that are sought and measured at a time
EXPECTED = (
    "a .parquet file with item_id and a column of lists or numeric columns, or an .npy file (N, D) "
    "beside a .json list of its N ids"
)


def read_own_vectors(name: str, item_ids: Sequence[str]) -> np.ndarray:
    """``(N, D)`` float32 rows of length 1 in the order of the catalogue.

    Args:
        name: ``sids.embeddings``.
        item_ids: of the catalogue; vectors of other items are left out.

    Raises:
        UserError: no such file, not such a file, an item without a vector, or a vector that is not
            finite or 0.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"sids.embeddings: {name}: no such file{relative_to(path)}; expected {EXPECTED}"
        )
    if path.suffix == ".parquet":
        ids, vectors = _read_parquet(path)
    elif path.suffix == ".npy":
        ids, vectors = _read_npy(path)
    else:
        raise UserError(f"sids.embeddings: {name}: unknown kind of file; expected {EXPECTED}")
    row_of = {item: row for row, item in enumerate(ids)}
    if len(row_of) < len(ids):
        twice = next(item for row, item in enumerate(ids) if row_of[item] != row)
        raise UserError(f"sids.embeddings: {name}: item '{twice}' is there twice; keep one row")
    missing = [item for item in item_ids if item not in row_of]
    if missing:
        raise UserError(
            f"sids.embeddings: {name}: has no vector of item '{missing[0]}' ({len(missing)} of "
            f"{len(item_ids)} items have none; its ids look like '{ids[0] if ids else ''}'); add "
            "them, or drop these items"
        )
    rows = np.array([row_of[item] for item in item_ids], dtype=np.int64)
    found = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
    lengths = np.empty((len(rows), 1), dtype=np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        found[block] = vectors[rows[block]]
        lengths[block] = np.linalg.norm(found[block], axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise UserError(
            f"sids.embeddings: {name}: the vector of item '{item_ids[bad[0]]}' is 0 or not finite "
            f"({len(bad)} such items); mend it, or drop these items"
        )
    found /= lengths
    return found


def beside_text(own: np.ndarray, text: np.ndarray, weight: float) -> np.ndarray:
    """``(N, D1 + D2)`` rows of length 1 from two tables of such rows.

    >>> beside_text(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 0.36).round(6).tolist()
    [[0.6, 0.0, 0.0, 0.8]]
    """
    scaled = (weight**0.5 * own, (1 - weight) ** 0.5 * text)
    return np.concatenate(scaled, axis=1)


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"sids.embeddings: {path}: is no Parquet file ({reason})") from None
    if "item_id" not in table.column_names:
        columns = ", ".join(table.column_names)
        raise UserError(
            f"sids.embeddings: {path}: has no column item_id (its columns: {columns}); expected "
            f"{EXPECTED}"
        )
    ids = [read_id(cell) for cell in table["item_id"].to_pylist()]
    numbers = []
    for name in table.column_names:
        kind = table.schema.field(name).type
        if name == "item_id":
            continue
        if (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):
            return ids, _as_rows(path, table[name].to_pylist())
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            numbers.append(table[name].to_numpy())
    if not numbers:
        raise UserError(f"sids.embeddings: {path}: holds no numbers; expected {EXPECTED}")
    return ids, np.stack(numbers, axis=1)


def _as_rows(path: Path, rows: list[list[float]]) -> np.ndarray:
    widths = {len(row) if row is not None else 0 for row in rows}
    if len(widths) != 1:
        raise UserError(
            f"sids.embeddings: {path}: its vectors have {min(widths)} to {max(widths)} numbers; "
            "expected as many in every row"
        )
    return np.array(rows, dtype=float)


def _read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    named = path.with_suffix(".json")
    beside = named if named.is_file() else path.with_name("item_ids.json")
    if not beside.is_file():
        raise UserError(
            f"sids.embeddings: {path}: needs {named.name} or item_ids.json beside it, a JSON list "
            "of the item id of every row"
        )
    try:
        ids = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"sids.embeddings: {beside}: is no JSON ({error})") from None
    vectors = map_array(path)
    if not isinstance(ids, list) or vectors.ndim != 2 or len(ids) != len(vectors):
        count = len(ids) if isinstance(ids, list) else "no"
        raise UserError(
            f"sids.embeddings: {path}: has the shape {vectors.shape} and {beside.name} {count} "
            "ids; expected (N, D) and N ids"
        )
    return [read_id(item) for item in ids], vectors
