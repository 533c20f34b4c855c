"""From raw tables to the data directory: filters, split, counts, files.

Filters are those of the MiniOneRec report, arXiv:2510.24431: title length, time window, iterative
k-core; a split that the source carries is taken as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from minionerec.catalogue import mapped, split
from minionerec.catalogue.arrays import (
    by_first_rows,
    counts,
    gathered,
    size_of,
    stable_order,
)
from minionerec.catalogue.sources import amazon, embedded, filters, minionerec_csv, tables
from minionerec.catalogue.sources.columns import (
    BLOCK,
    Ids,
    arrow_column,
    codes_of,
    places_of,
    taken,
)
from minionerec.catalogue.sources.source import INTERACTION_COLUMNS, ITEM_COLUMNS, SPLITS, Source
from minionerec.errors import UserError
from minionerec.experiment.files import write_json
from minionerec.experiment.settings import DataSettings, Experiment

ROW_GROUP = 2**20  # interactions that are written at a time, and as one row group


def load_source(experiment: Experiment) -> Source:
    """Read the configured source."""
    data = experiment.data
    if data.source == "embedded":
        return embedded.load(experiment.seed)
    if data.source == "minionerec":
        return minionerec_csv.load(data)
    if data.source == "amazon":
        return amazon.load(data)
    return tables.load(data)


def keeps_own_split(settings: DataSettings) -> bool:
    """Whether the source's own split is taken as it is.

    Filters would change its samples, so none are applied.
    """
    return settings.split == "own" or settings.source == "minionerec"


def apply_filters(
    source: Source, settings: DataSettings
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Title length, then ``filters.select``; the source's interactions are used up.

    With k-core on, items that nobody interacted with go as well.

    Returns:
        Items, interactions in global order, and what was dropped by reason.
    """
    items, interactions, dropped = source.items, source.interactions, dict(source.dropped)
    if not source.filtered:
        good = _titles_are_kept(items["title"], settings.max_title_words)
        if not good.all():
            items = items[good]
        places = places_of(interactions["item_id"], items["item_id"])
        known = places >= 0
        if not known.all():
            interactions = taken(interactions, known)
            places = places[known]
        dropped["items with a title of more than data.max_title_words words"] = int((~good).sum())
        dropped["interactions with those items"] = int((~known).sum())
        del known
        users = codes_of(interactions["user_id"])
        times = interactions["timestamp"].to_numpy()
        ratings = interactions["rating"].to_numpy()
        kept, reasons = filters.select(users, places, times, ratings, settings)
        dropped.update(reasons)
        if settings.k_core > 1:
            used = counts(places, len(items), kept) > 0
            items = items[used]
            dropped["items without interactions after that"] = int((~used).sum())
        del places, users, times, ratings
        if not kept.all():
            interactions = taken(interactions, kept)
        del kept
    rows = stable_order(interactions["timestamp"].to_numpy())
    return items, taken(interactions, rows), dropped


def _titles_are_kept(titles: pd.Series, max_words: int) -> np.ndarray:
    """``(N,)`` bool; few titles are Python objects at a time."""
    good = np.empty(len(titles), dtype=bool)
    for start in range(0, len(titles), BLOCK):
        rows = slice(start, start + BLOCK)
        some = titles.iloc[rows].tolist()
        good[rows] = [filters.title_is_kept(title, max_words) for title in some]
    return good


def keep_as_is(
    source: Source, settings: DataSettings
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """All but the users with a single interaction; the source's interactions are used up.

    Equal times are ordered train, valid, test, then by source order.

    Returns:
        Items, interactions in global order, and what was dropped by reason.
    """
    interactions = source.interactions
    users = codes_of(interactions["user_id"])
    several = gathered(counts(users, size_of(users)) > 1, users)
    rank = split.rank_of(interactions["split"])
    times = interactions["timestamp"].to_numpy()
    rows = np.flatnonzero(several)
    rows = rows[stable_order(rank[rows])]
    rows = rows[stable_order(times[rows])]
    dropped = {
        **source.dropped,
        "interactions of users with fewer than 2": len(several) - len(rows),
    }
    return source.items, taken(interactions, rows), dropped


def assign_splits(interactions: pd.DataFrame, settings: DataSettings, own: bool) -> pd.DataFrame:
    """The interactions with their split.

    Raises:
        UserError: a split has no targets.
    """
    users = codes_of(interactions["user_id"])
    target = split.is_target(users)
    if own:
        splits = split.named(split.rank_of(interactions["split"]))
    elif settings.split == "leave_one_out":
        splits = split.leave_one_out(users)
    else:
        splits = split.global_time(
            interactions["timestamp"].to_numpy(), target, settings.split_ratios
        )
    for name in SPLITS:
        if not (target & (splits == name)).any():
            raise UserError(f"data.split: no target is in {name}; every split needs at least one")
    return interactions.assign(split=splits)


def describe(
    items: pd.DataFrame,
    interactions: pd.DataFrame,
    dropped: dict[str, int],
    source: Source,
    settings: DataSettings,
    own: bool,
) -> dict[str, Any]:
    """The content of stats.json, leak report included."""
    users = codes_of(interactions["user_id"])
    codes = places_of(interactions["item_id"], items["item_id"])
    splits = interactions["split"]
    order = stable_order(users)  # once: sorting is most of what all counts cost
    filters = (
        "none: the source's own split is taken as it is"
        if own
        else "title words, time window, rating, k-core"
    )
    return {
        "source": settings.source,
        "split": "own" if own else settings.split,
        "filters": filters,
        "dropped": dropped,
        "timestamps": source.timestamps,
        **split.statistics(
            users,
            codes,
            interactions["timestamp"].to_numpy(),
            splits,
            len(items),
            settings.max_history,
            order,
        ),
        "leaks": split.leak_report(users, splits, order),
    }


def write(
    staging: Path,
    items: pd.DataFrame,
    interactions: pd.DataFrame,
    stats: dict[str, Any],
    given_sids: dict[str, list[int]] | None,
) -> None:
    """The files of runs/<name>/data, with fixed column types; ratings are let go in between."""
    text = pa.string()
    item_schema = pa.schema(
        [(name, pa.list_(text) if name == "categories" else text) for name in ITEM_COLUMNS]
    )
    columns = [arrow_column(items[field.name], field.type) for field in item_schema]
    pq.write_table(pa.table(columns, schema=item_schema), staging / "items.parquet")
    types = {"timestamp": pa.int64(), "rating": pa.float64()}
    schema = pa.schema([(name, types.get(name, text)) for name in INTERACTION_COLUMNS])
    with pq.ParquetWriter(staging / "interactions.parquet", schema) as writer:
        for start in range(0, len(interactions), ROW_GROUP):
            rows = interactions.iloc[start : start + ROW_GROUP]
            columns = [arrow_column(rows[field.name], field.type) for field in schema]
            writer.write_table(pa.table(columns, schema=schema))
    pa.default_memory_pool().release_unused()  # Arrow keeps what it wrote with otherwise
    del interactions["rating"]  # which no array holds
    _write_arrays(staging, items, interactions)
    write_json(staging / "stats.json", stats)
    if given_sids is not None:
        write_json(staging / "given_sids.json", given_sids)


def _write_arrays(staging: Path, items: pd.DataFrame, interactions: pd.DataFrame) -> None:
    """What later stages map instead of reading the tables."""
    ids = Ids.of(interactions["user_id"])
    users, found = by_first_rows(ids.codes, len(ids.texts))
    texts = ids.texts.take(pa.array(found)).cast(pa.string())
    mapped.write(
        staging,
        users,
        texts,
        places_of(interactions["item_id"], items["item_id"]),
        interactions["timestamp"].to_numpy(),
        split.rank_of(interactions["split"]),
    )
