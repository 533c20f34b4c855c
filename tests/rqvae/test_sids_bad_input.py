"""What stage 1 refuses: one line each, exit code 2, nothing written.

python -m pytest tests/rqvae/test_sids_bad_input.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.commit import committed
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.settings import Experiment, SidSettings
from minionerec.experiment.stages import settings_of, stage_path
from rqvae import build_sids

NUM_ITEMS = 20


def world(
    folder: Path, embeddings: np.ndarray, item_ids: list[str], sizes: list[int]
) -> Experiment:
    """Committed data and embeddings of a shop of 20 items, the embeddings as given."""
    experiment = Experiment(
        name="demo",
        output_dir=str(folder / "runs"),
        sids=SidSettings(codebook_sizes=sizes, kmeans_iterations=5),
    )
    items = pd.DataFrame(
        {
            "item_id": item_ids,
            "title": "x",
            "description": "",
            "brand": "",
            "categories": [[]] * len(item_ids),
        }
    )
    interactions = pd.DataFrame(
        {
            "user_id": ["u", "u"],
            "item_id": item_ids[:2],
            "timestamp": [1, 2],
            "rating": 1.0,
            "split": "train",
        }
    )
    data = stage_path(experiment, "data")
    with committed(data, "data", settings_of(experiment, "data"), []) as staging:
        items.to_parquet(staging / "items.parquet")
        interactions.to_parquet(staging / "interactions.parquet")
    with committed(
        stage_path(experiment, "embeddings"),
        "embeddings",
        settings_of(experiment, "embeddings"),
        [opened(data)],
    ) as staging:
        np.save(staging / "embeddings.npy", embeddings)
        write_json(staging / "item_ids.json", item_ids)
    return experiment


def rows(change=lambda rows: None, count: int = NUM_ITEMS) -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    change(made)
    return made


IDS = [f"i{i}" for i in range(NUM_ITEMS)]


def set_row(row: int, value: float):
    return lambda made: made.__setitem__(row, value)


@pytest.mark.parametrize(
    "embeddings, item_ids, sizes, message",
    [
        (
            rows(set_row(7, np.nan)),
            IDS,
            [4, 4, 4],
            "row 7, item 'i7': NaN or infinite values (so have 1 rows in all)",
        ),
        (
            rows(set_row(7, -np.inf)),
            IDS,
            [4, 4, 4],
            "row 7, item 'i7': NaN or infinite values (so have 1 rows in all)",
        ),
        (
            rows(set_row(0, 0)),
            IDS,
            [4, 4, 4],
            "row 0, item 'i0': only zeros (so have 1 rows in all)",
        ),
        (
            rows(lambda made: made.fill(0.5)),
            IDS,
            [4, 4, 4],
            "embeddings.npy: all 20 rows are the same, so that nothing tells the items apart",
        ),
        (
            rows(),
            IDS,
            [4, 21, 4],
            "sids.codebook_sizes: level 2 has 21 codes for only 20 items; use at most 20",
        ),
        (
            rows(),
            [*IDS[:-1], "i3"],
            [4, 4, 4],
            "item_ids: 'i3' is in rows 3 and 19 (1 ids occur more than once), expected every id once",
        ),
        (
            rows(count=19),
            IDS,
            [4, 4, 4],
            "embeddings.npy: shape (19, 4), expected one row for each of the 20 ids in item_ids.json",
        ),
        (
            rows(),
            IDS,
            [4, 4],
            "sids.codebook_sizes: [4, 4] makes 16 SIDs for 20 items; add a level or codes, or choose",
        ),
    ],
    ids=[
        "nan",
        "infinite",
        "zeros",
        "all the same",
        "fewer items than codes",
        "duplicate ids",
        "count mismatch",
        "full code space",
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path, capsys, embeddings, item_ids, sizes, message
):
    experiment = world(tmp_path, embeddings, item_ids, sizes)
    before = sorted(path.name for path in (tmp_path / "runs" / "demo").iterdir())
    with pytest.raises(SystemExit) as ended, one_line_errors():
        build_sids.main(experiment)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert len(said.err.splitlines()) == 1 and message in said.err
    assert (
        sorted(
            p.name for p in (tmp_path / "runs" / "demo").iterdir() if not p.name.endswith(".lock")
        )
        == before
    )


@pytest.mark.parametrize(
    "method, allowed",
    [("rqkmeans", True), ("balanced_rqkmeans", True), ("rqvae", False), ("opq", False)],
)
def test_a_grid_as_last_level_needs_residual_kmeans(method, allowed):
    changes = {"sids.method": method, "sids.last_level": "fsq"}
    if allowed:
        assert Experiment(name="demo").changed(changes).sids.last_level == "fsq"
        return
    with pytest.raises(UserError) as caught:
        Experiment(name="demo").changed(changes)
    assert str(caught.value) == (
        f"sids.last_level: fsq needs sids.method rqkmeans or balanced_rqkmeans, got {method}"
    )
