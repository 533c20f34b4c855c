"""People's own data with the shipped own_dataset.yaml: what stands in the files is what arrives, and advice where settings do not fit.

python -m pytest tests/commands/test_own_data.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import prepare
from minionerec.catalogue.advice import advice_on
from minionerec.experiment.config import read_experiment
from minionerec.experiment.manifest import verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from rqvae import build_sids, embed_items
from tests.shops import SHOPS

ROOT = Path(__file__).resolve().parents[2]


def own(folder: Path, shop: str, **overrides: str) -> Experiment:
    """The shipped configuration on one of the three data sets."""
    (folder / shop).mkdir()
    flags = SHOPS[shop](folder / shop)
    flags |= {"output_dir": str(folder / "runs"), "name": shop, **overrides}
    return read_experiment(ROOT / "configs" / "own_dataset.yaml", flags)


def prepared(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    path = stage_path(experiment, "data")
    prepare.prepare(experiment, path)
    verify(path)
    return pd.read_parquet(path / "items.parquet"), pd.read_parquet(path / "interactions.parquet")


def test_a_shop_out_of_excel_arrives_whole_and_its_chinese_half_is_warned_about(tmp_path, capsys):
    experiment = own(tmp_path, "excel")
    items, interactions = prepared(experiment)
    said = capsys.readouterr().out
    assert "Bestellungen.csv:4: rating: '4,5' is read with a decimal comma" in said
    assert "its cells are separated by ';'" in said
    assert "dropped 2 items without a title" in said
    assert items["item_id"][0] == "000" and items["title"][0] == "智能手机保护壳 grün, 0"
    assert items["brand"][0] == "Müller"
    assert items["categories"][1].tolist() == ["Haus", "Akku-Bohrschrauber"]
    assert set(interactions["rating"]) == {4.0, 4.5}
    # 31.01.2023 18:05 UTC, which is not the 1st of a 31st month
    assert interactions["timestamp"].min() == 1_675_188_300
    embed_items.main(experiment)
    warning = capsys.readouterr().err
    assert re.search(r"warning: \d\d% of the tokens of the item texts are unknown", warning)
    build_sids.main(experiment)
    sids = json.loads((stage_path(experiment, "sids") / "sids.json").read_text())["sids"]
    assert len({tuple(sid) for sid in sids.values()}) == len(items) == 58


def test_ratings_of_one_day_per_user_get_advice_on_split_and_repeats(tmp_path, capsys):
    experiment = own(tmp_path, "ratings")
    items, interactions = prepared(experiment)
    said = capsys.readouterr().out
    assert (
        "advice: 5 of 5 test users have no row in train: a split by time tests on newcomers" in said
    )
    assert "advice: 0.0% of interactions repeat an item: set evaluate.exclude_history true" in said
    assert "advice: 42 test rows leave wide intervals" in said
    assert re.search(r"advice: SFT will be about \d\d steps, too few for a model", said)
    assert items["categories"][0].tolist() == ["Romance", "Comedy"]
    assert not interactions.duplicated(["user_id", "item_id"]).any()


def test_whole_numbers_stay_the_ids_they_are_and_absent_columns_are_empty(tmp_path):
    experiment = own(tmp_path, "parquet")
    items, interactions = prepared(experiment)
    assert items["item_id"][0] == "1000000000000" and set(interactions["user_id"]) >= {"0", "49"}
    assert items["brand"][:4].tolist() == ["maker 0", "", "", "maker 3"]
    assert set(items["description"]) == {""} and items["categories"][0].tolist() == []
    assert interactions["timestamp"].min() == pd.Timestamp("2024-02-01", tz="UTC").timestamp()


@pytest.mark.parametrize("choice, titles", [("id", ["0058", "0059"]), ("drop", [])])
def test_items_without_a_title_are_dropped_or_called_by_their_id(tmp_path, choice, titles):
    items, interactions = prepared(own(tmp_path, "excel", **{"data.missing_title": choice}))
    last = items[items["item_id"].isin(["0058", "0059"])]
    assert last["title"].tolist() == titles
    assert interactions["item_id"].isin(["0058", "0059"]).any() == bool(titles)


def test_settings_that_fit_get_no_advice():
    """A thousand test rows, users with train, repeats; then one fact at a time is worse."""
    test = {"samples": 1000, "users": 100, "users_without_train": 50}
    train = {"samples": 20_000}
    stats = {"split": "global_time", "repeat_rate": 0.01, "splits": {"train": train, "test": test}}
    experiment = Experiment(name="x")
    assert advice_on(stats, experiment) == []
    assert len(advice_on(stats | {"repeat_rate": 0.0009}, experiment)) == 1
    excluded = experiment.changed({"evaluate.exclude_history": True})
    assert advice_on(stats | {"repeat_rate": 0.0}, excluded) == []
    newcomers = {"splits": {"train": train, "test": test | {"users_without_train": 51}}}
    assert len(advice_on(stats | newcomers, experiment)) == 1
    assert advice_on(stats | newcomers | {"split": "leave_one_out"}, experiment) == []
    few = {"splits": {"train": train, "test": test | {"samples": 499}}}
    assert len(advice_on(stats | few, experiment)) == 1


def test_too_few_steps_for_a_model_from_scratch_are_said_before_it_is_trained():
    """Ten epochs of five tasks: 5 x 499 rows are 24 full batches of 100 and one of 95 rows."""
    test = {"samples": 1000, "users": 100, "users_without_train": 50}
    splits = {"train": {"samples": 499}, "test": test}
    stats = {"split": "global_time", "repeat_rate": 0.01, "splits": splits}
    experiment = Experiment(name="x").changed({"sft.batch_size": 100})
    assert advice_on(stats, experiment) == []  # 250 steps
    (advice,) = advice_on(stats, experiment.changed({"sft.batch_size": 128}))
    assert advice.startswith("SFT will be about 200 steps, too few for a model from scratch")
    pretrained = {"sft.batch_size": 128, "model.backbone": "some/model"}
    assert advice_on(stats, experiment.changed(pretrained)) == []


def test_the_guide_shows_the_section_of_the_shipped_file():
    guide = (ROOT / "docs" / "DATA.md").read_text()
    section = re.search(r"```yaml\n(data:\n.*?)```", guide, re.DOTALL)[1]
    assert section in (ROOT / "configs" / "own_dataset.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("shop", SHOPS)
def test_every_stage_runs_on_own_data(tmp_path, shop):
    """From files to the summary, with nothing but the shipped configuration and the flags of the
    data.
    """
    (tmp_path / shop).mkdir()
    flags = SHOPS[shop](tmp_path / shop) | {"output_dir": str(tmp_path / "runs"), "name": shop}
    flags |= {"sft.epochs": "1", "rl.epochs": "0.1", "baselines.epochs": "2", "rl.evals": "1"}
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    arguments = ["--config", "configs/own_dataset.yaml", *words]
    for command in (
        ["bash", "data/prepare.sh"],
        ["bash", "rqvae/rqvae.sh"],
        ["bash", "baselines/run.sh"],
        ["bash", "sft.sh"],
        ["bash", "rl.sh"],
        ["bash", "evaluate.sh", "--evaluate.checkpoint", "rl"],
        ["python", "-m", "minionerec.summary"],
        ["python", "data/audit.py"],
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    metrics = json.loads((tmp_path / "runs" / shop / "evaluate/rl-test/metrics.json").read_text())
    assert 0 <= metrics["NDCG@10"] <= 1 and metrics["invalid"] == 0
    assert np.isfinite(metrics["HR@10"])
