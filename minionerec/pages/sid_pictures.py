"""What an experiment's page shows of its semantic IDs: a map of the items, and the tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from minionerec.evaluation.results import read_sids
from minionerec.experiment.lineage import require_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from minionerec.pages.item_map import item_map
from minionerec.pages.sid_tree import tree


def sid_pictures(experiment: Experiment) -> dict[str, Any]:
    """``map`` ("" without embeddings) and ``tree``; empty without stage 0 or 1."""
    sid_of = read_sids(experiment)
    if not sid_of or not stage_path(experiment, "data").exists():
        return {}
    items = pd.read_parquet(
        require_stage(experiment, "data") / "items.parquet",
        columns=["item_id", "title", "categories"],
    )
    titles = dict(zip(items["item_id"], items["title"], strict=True))
    paths = dict(zip(items["item_id"], items["categories"], strict=True))
    ids = [item for item in sid_of if item in titles]
    of_items = [sid_of[item] for item in ids]
    branches = tree(of_items, [titles[item] for item in ids], [paths[item] for item in ids])
    return {"map": embedding_map(experiment, sid_of, titles), "tree": branches}


def embedding_map(
    experiment: Experiment, sid_of: Mapping[str, list[int]], titles: Mapping[str, str]
) -> Markup:
    """The map of the embeddings that the SIDs were made from; "" where they are not there."""
    directory = stage_path(experiment, "sids")
    if not (directory / "item_ids.json").is_file():
        return Markup("")
    embeddings = np.load(directory / "embeddings.npy", mmap_mode="r")
    ids = json.loads((directory / "item_ids.json").read_text(encoding="utf-8"))
    return item_map(embeddings, [sid_of[item] for item in ids], [titles[item] for item in ids])
