"""Small committed rankings, to be compared."""

import json
import random
import shutil

import pandas as pd

from minionerec.evaluation import scoring
from minionerec.experiment.commit import committed as commit_directory
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.stages import stage_path
from tests.worlds import tiny_run

ITEMS = [f"i{n}" for n in range(24)]


def rows_of(data, split="test"):
    """(user, target) of a data directory's rows, written without the code under test."""
    seen, rows = set(), []
    for row in pd.read_parquet(data / "interactions.parquet").to_dict("records"):
        if row["user_id"] in seen and row["split"] == split:
            rows.append((row["user_id"], row["item_id"]))
        seen.add(row["user_id"])
    return rows


def lists(pairs, seed, skill):
    """Random rankings of the whole catalogue in which the target is first with probability
    ``skill``.
    """
    rng = random.Random(seed)
    rows = []
    for user, target in pairs:
        items = rng.sample(ITEMS, len(ITEMS))
        if rng.random() < skill:
            items.insert(0, items.pop(items.index(target)))
        rows.append(
            {
                "user_id": user,
                "target_item_id": target,
                "item_ids": items,
                "scores": [-float(n) for n in range(len(items))],
            }
        )
    return rows


def write(folder, rows, split="test", **facts):
    """A directory with ``predictions.jsonl`` and the ``metrics.json`` that belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = scoring.score_predictions(rows, None, ITEMS, {}, bootstrap_samples=0)
    write_json(folder / "metrics.json", scored | {"split": split} | facts)
    (folder / "predictions.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def committed(experiment, name, rows, split="test", stage="baselines", **settings):
    """The same as a stage of the pipeline writes it: with a manifest, made from the experiment's
    data.
    """
    data = stage_path(experiment, "data")
    final = stage_path(experiment, "evaluate" if stage == "evaluate" else "baselines") / name
    facts = {"method": name}
    settings = {"seed": experiment.seed, **settings}
    if stage == "evaluate":
        facts = {}
        settings |= {
            "evaluate.checkpoint": name.removesuffix(f"-{split}"),
            "evaluate.split": split,
        }
    with commit_directory(final, stage, settings, [opened(data)], **facts) as staging:
        write(staging, rows, split)
    return final


def experiment(folder, name="a", seed=42):
    """``tiny_run`` under another name, with its data stage."""
    made = tiny_run(folder / "made")
    named = made.changed({"name": name, "output_dir": str(folder), "seed": seed})
    shutil.copytree(stage_path(made, "data"), stage_path(named, "data"))
    return named


def world_of(folder):
    """One experiment with three rankings of its test split and one of its validation split."""
    made = experiment(folder)
    data = stage_path(made, "data")
    for name, seed, skill in (("bad", 0, 0.0), ("alike", 1, 0.0), ("good", 2, 0.7)):
        committed(made, name, lists(rows_of(data), seed, skill))
    committed(
        made, "sft-valid", lists(rows_of(data, "valid"), 3, 0.3), split="valid", stage="evaluate"
    )
    return folder / "a"


def seeds_of(folder):
    """Experiments a, b, c that differ in their seed alone, and d, which was made with another
    setting, too.
    """
    made = {}
    for name, seed in (("a", 42), ("b", 43), ("c", 44), ("d", 45)):
        made[name] = experiment(folder, name, seed)
        pairs = rows_of(stage_path(made[name], "data"))
        committed(made[name], "net", lists(pairs, seed, 0.4), width=64 if name == "d" else 32)
        committed(made[name], "rule", lists(pairs, 7, 0.2))
    return folder
