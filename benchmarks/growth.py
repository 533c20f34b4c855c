"""Steps of SFT a second on a large table against a small one: what does a step cost that grows?

    python benchmarks/growth.py --folder F                                # 0.1 and 10 million
    python benchmarks/growth.py --folder F --sft.tasks "{sid_to_sid: 1}"  # and any other setting

Makes both tables (``benchmarks/tables.py``) and their stages 0 and 1 in the folder, unless they are
there, and starts ``sft.py``'s training on each in a process of its own. The two take turns, some
micro-batches each, so that whatever else the machine does meets both; CPU seconds are compared, and
the median of the turns counts. A micro-batch is a step (``sft.batch_size`` 64).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

import minionerec_trainer
import sft
from benchmarks import tables
from minionerec.errors import one_line_errors
from minionerec.experiment.config import read_experiment
from minionerec.experiment.stages import path_of

ROOT = Path(__file__).resolve().parents[1]
SIZES = (100_000, 10_000_000)
VECTORS = 32  # numbers of each item's vector
ROWS = 64
TURNS, STEPS = 40, 2  # of each size; micro-batches of a turn
SETTINGS: dict[str, Any] = {
    "name": "growth",
    "data": {"source": "tables"},
    "sids": {"method": "rqkmeans", "codebook_sizes": [128, 128, 128]},
    "sft": {"batch_size": ROWS, "micro_batch_size": ROWS},
}


class Turn(NamedTuple):
    """Some micro-batches of one size."""

    seconds: float  # of the CPU
    rows: int
    tokens: int  # of the packed trees, which the forward reads
    labels: int  # places that predict something, each a row of logits


def main(folder: Path, words: list[str]) -> None:
    """Prepare both sizes, let them take turns and print what a step costs.

    Args:
        folder: for tables and runs, 2 GB.
        words: further settings of SFT, as ``sft.py`` takes them.
    """
    children = []
    for size in SIZES:
        config = prepared(folder.resolve() / str(size), size)
        command = [sys.executable, "-m", "benchmarks.growth", "--train", str(config), *words]
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
    turns: list[list[Turn]] = [[] for _ in SIZES]
    for number in range(TURNS + 1):
        for child, found in zip(children, turns, strict=True):
            turn = take_turn(child)
            if number:  # the first one allocates
                found.append(turn)
    for child in children:
        child.kill()  # a signal would be answered with a checkpoint
        child.wait()
    report(turns)


def prepared(folder: Path, size: int) -> Path:
    """The configuration of one size, with stages 0 and 1 made."""
    source = folder / "tables"
    if not (source / "vectors.json").exists():  # the last file that is written
        tables.main(str(source), size, vectors=VECTORS)
    settings = SETTINGS | {"output_dir": str(folder)}
    settings["data"] = settings["data"] | {"path": str(source)}
    settings["sids"] = settings["sids"] | {"embeddings": str(source / "vectors.npy")}
    config = folder / "growth.yaml"
    config.write_text(yaml.safe_dump(settings))
    for script in ("data/prepare.py", "rqvae/embed_items.py", "rqvae/build_sids.py"):
        command = [sys.executable, str(ROOT / script), "--config", str(config)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return config


def take_turn(child: subprocess.Popen) -> Turn:
    """Let a training make its next micro-batches."""
    if child.stdin is None or child.stdout is None:
        raise ValueError("a training is spoken to through pipes")
    child.stdin.write("go\n")
    child.stdin.flush()
    for line in child.stdout:
        if line.startswith("turn "):
            seconds, rows, tokens, labels = line.split()[1:]
            return Turn(float(seconds), int(rows), int(tokens), int(labels))
    sys.exit("a training has ended; what it said is above")


class Paced(minionerec_trainer.SFTTrainer):
    """Waits for a word on stdin before each turn, and says behind it what it cost."""

    done = 0
    rows = 0
    tokens = 0
    labels = 0
    since = 0.0

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """One micro-batch."""
        if self.done % STEPS == 0:
            if self.done:
                seconds = time.process_time() - self.since
                print("turn", seconds, self.rows, self.tokens, self.labels, flush=True)
            self.rows = self.tokens = self.labels = 0
            sys.stdin.readline()
            self.since = time.process_time()
        self.done += 1
        self.rows += self.args.per_device_train_batch_size
        self.tokens += inputs["tree"].input_ids.numel()
        self.labels += len(inputs["slots"])
        return super().training_step(model, inputs, *args, **kwargs)


def train(config: str, words: list[str]) -> None:
    """The training of one size, as ``sft.py`` does it."""
    flags = dict(zip([word.removeprefix("--") for word in words[::2]], words[1::2], strict=True))
    minionerec_trainer.SFTTrainer = Paced  # type: ignore[misc]
    experiment = read_experiment(config, flags)
    sft.train(experiment, path_of(experiment, "sft"))


def report(turns: list[list[Turn]]) -> None:
    """Micro-batches and tokens a CPU second of each size, and the medians of the turns' ratios."""
    for size, found in zip(SIZES, turns, strict=True):
        steps = statistics.median(STEPS / turn.seconds for turn in found)
        tokens = statistics.median(turn.tokens / turn.seconds for turn in found)
        rows = sum(turn.rows for turn in found)
        length = sum(turn.tokens for turn in found) / rows
        labels = sum(turn.labels for turn in found) / rows
        print(
            f"{size:>12,} interactions: {steps:.3f} steps and {tokens:,.0f} tokens a CPU second, "
            f"{length:.1f} tokens and {labels:.1f} labels a row"
        )
    per_step = []
    per_token = []
    for small, large in zip(*turns, strict=True):
        ratio = small.seconds / large.seconds
        per_step.append(ratio)
        per_token.append(ratio * large.tokens / small.tokens)
    steps = statistics.median(per_step)
    tokens = statistics.median(per_token)
    print(f"ratio: {steps:.3f} a step, {tokens:.3f} a token")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="for tables and runs, 2 GB")
    parser.add_argument("--train", help="of one of the two processes: its settings")
    given, further = parser.parse_known_args()
    with one_line_errors():
        if given.train:
            train(given.train, further)
        else:
            main(given.folder, further)
