"""Which rows of a split can be answered from memory, as ``compare.py`` parts them.

A row can where some train sequence goes from its last item straight to its target: the slice
``pair_in_train`` of ``slices.py``, found again from a data directory alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minionerec.evaluation.statistics import row_keys


def pair_in_train(data: Path, split: str) -> np.ndarray:
    """``(rows,)`` whether each row's target followed its last item in train.

    Args:
        data: a committed data directory.
        split: whose rows; they come in the order of their ``row_keys``, as rankings are read.
    """
    import pandas as pd  # half a second that comparisons of foreign rankings do not need

    columns = ["user_id", "item_id", "split"]
    rows = pd.read_parquet(data / "interactions.parquet", columns=columns)
    train = rows[rows["split"] == "train"]
    train_before = train.groupby("user_id")["item_id"].shift()
    known = set(zip(train_before, train["item_id"], strict=True))
    rows["last"] = rows.groupby("user_id")["item_id"].shift()
    # A user's first interaction has nothing before it and is no row
    targets = rows[(rows["split"] == split) & rows["last"].notna()]
    found = []
    records = []
    for row in targets.itertuples():
        pair = (row.last, row.item_id)
        found.append(pair in known)
        record = {
            "user_id": row.user_id,
            "target_item_id": row.item_id,
        }
        records.append(record)
    keys = row_keys(records)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return np.array(found)[order]
