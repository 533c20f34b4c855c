"""Rankings scored by SID string, as papers do, beside the item-level numbers.

Two items with one SID are one answer then: whoever ranks the one has hit the other too. Any ranking
can be scored so under any SIDs, its own or those that came with a data set, which shows how much of
a published number is the scoring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minionerec.errors import UserError
from minionerec.evaluation.methods import Method
from minionerec.evaluation.metrics import row_metrics
from minionerec.evaluation.rankings import read_predictions

SHOWN = ("HR@1", "HR@5", "HR@10", "NDCG@10")


def by_string(methods: Sequence[Method], file: Path) -> dict[str, Any]:
    """For every method ``item``, ``string`` and their ``difference``, key by key.

    Args:
        methods: of several seeds the mean counts.
        file: item -> SID: an ``index.json`` as MiniOneRec's data has it, or a ``sids.json``.

    Raises:
        UserError: the file is not there, is no such table, or lacks an item that is ranked.
    """
    sid_of = read_strings(file)
    found: dict[str, Any] = {}
    for method in methods:
        total = dict.fromkeys(SHOWN, 0.0)
        for ranking in method.rankings:
            rows = read_predictions(ranking.path / "predictions.jsonl")
            named = {item for row in rows for item in (row["target_item_id"], *row["item_ids"])}
            missing = sorted(named - sid_of.keys())
            if missing:
                raise UserError(
                    f"{file}: has no SID for item '{missing[0]}' of {ranking.path} "
                    f"({len(missing)} items are missing); it is of another catalogue"
                )
            _, strings = row_metrics(rows, sid_of)
            for key in SHOWN:
                total[key] += float(strings[key].mean()) / len(method.rankings)
        own = {key: float(method.values[key].mean()) for key in SHOWN if key in method.values}
        found[method.name] = {
            "item": own,
            "string": {key: total[key] for key in own},
            "difference": {key: total[key] - own[key] for key in own},
        }
    return found


def read_strings(file: Path) -> dict[str, tuple[Any, ...]]:
    """Item -> SID.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--strings {file}: cannot be read ({type(error).__name__}); expected an index.json or "
            "a sids.json"
        ) from None
    if isinstance(table, dict) and isinstance(table.get("sids"), dict):
        table = table["sids"]
    if not isinstance(table, dict) or not all(isinstance(sid, list) for sid in table.values()):
        raise UserError(f"--strings {file}: expected an object of item ids, each with its codes")
    return {str(item): tuple(sid) for item, sid in table.items()}
