"""The stages' commands in forked processes: what they import is there already, and a process may be killed at any moment.

python -m tests.forks CONFIG STAGE ...        the same commands one after the other, in a process of their own
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.models.qwen2.modeling_qwen2  # noqa: F401 (what a stage would import late)
import yaml
from tqdm import tqdm

import evaluate
import minionerec_trainer  # noqa: F401
import rl
import sft
from data import prepare
from minionerec.errors import one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import sha256_file
from minionerec.experiment.manifest import verify
from minionerec.pages import plots
from rqvae import build_sids, embed_items

MADE_BY = {
    "data": ["data"],
    "sids": ["embeddings", "sids"],
    "sft": ["sft"],
    "rl": ["rl"],
    "evaluate": ["evaluate"],
}


def make_sids() -> None:
    """What ``rqvae/rqvae.sh`` starts."""
    for step in (embed_items, build_sids):
        step.main(read_command_line("", own=())[0])


STAGES: dict[str, Callable[[], None]] = {
    "data": prepare.main,
    "sids": make_sids,
    "sft": sft.main,
    "rl": rl.main,
    "evaluate": evaluate.main,
}


def command(stage: str, config: Path, *flags: str) -> None:
    """A stage as its script runs it, on one thread, but for the picture of its log, which takes
    longer than these trainings.
    """
    torch.set_num_threads(1)
    plots.curves = lambda rows, path: path.write_text(json.dumps(rows))
    sys.argv = [stage, "--config", str(config), *flags]
    with one_line_errors():
        STAGES[stage]()


def run(
    stage: str,
    config: Path,
    *flags: str,
    kill_after: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
    """Run a stage's command in a fork; -> exit code (a signal's number is negative) and what it printed.

    Args:
        kill_after: seconds until SIGKILL.
        before: called in the fork first, e.g. to plant a fault.
    """
    log = config.with_suffix(".log")
    log.write_text("")
    gc.freeze()  # else the fork's first collection copies all the pages of what was imported
    child = os.fork()
    if child == 0:
        _be(stage, config, flags, before, log)
    deadline = time.monotonic() + kill_after if kill_after is not None else None
    status = 0
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.001)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8")


def _be(
    stage: str, config: Path, flags: tuple[str, ...], before: Callable[[], None], log: Path
) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        for number, usual in (
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGINT, signal.default_int_handler),
        ):
            signal.signal(number, usual)
        tqdm.set_lock(
            threading.RLock()
        )  # the inherited one is shared: a process killed while it writes would keep it for ever
        before()
        command(stage, config, *flags)
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def shop(folder: Path) -> Path:
    """Two small tables, a tiny encoder and the YAML of an experiment with them; every stage takes
    less than a second.
    """
    rng = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    things, kinds = (
        ["drill", "saw", "lamp", "vise"],
        ["red", "blue", "green", "grey", "black", "white"],
    )
    (folder / "items.csv").write_text(
        "item_id,title,description\n"
        + "".join(
            f"{n:02d},{kinds[n % 6]} {things[n // 6]},for {kinds[n % 6]}\n" for n in range(24)
        )
    )
    rows = []
    for user in range(30):
        item = rng.randrange(24)
        for step in range(rng.randint(4, 7)):
            rows.append(f"u{user:02d},{item:02d},{1000 * user + step}\n")
            item = (item + 6) % 24 if rng.random() < 0.8 else rng.randrange(24)
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    from benchmarks.encoder import save_encoder  # seconds, and only here

    (folder / "encoder").mkdir(exist_ok=True)
    encoder = save_encoder(folder / "encoder", [*things, *kinds])
    config = {
        "output_dir": str(folder / "runs"),
        "data": {"source": "tables", "path": str(folder), "split": "leave_one_out", "k_core": 0},
        "sids": {
            "encoder": str(encoder),
            "codebook_sizes": [4, 8],
            "method": "rqvae",
            "epochs": 40,
            "batch_size": 8,
            "hidden_sizes": [8],
            "latent_size": 4,
            "kmeans_iterations": 5,
        },
        "model": {
            "template": "compact",
            "text_vocab_size": 300,
            "config": {
                "model_type": "qwen2",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 128,
            },
        },
        "sft": {
            "tasks": {"sid_to_sid": 1},
            "epochs": 2,
            "batch_size": 24,
            "micro_batch_size": 12,
            "learning_rate": "1e-2",
            "warmup_steps": 2,
            "dropout": 0.1,
            "eval_rows": 10,
            "evals_per_epoch": 2,
        },
        "rl": {
            "epochs": 2,
            "batch_size": 24,
            "micro_batch_size": 12,
            "num_generations": 4,
            "evals": 4,
            "eval_rows": 10,
            "eval_beams": 10,
            "learning_rate": "1e-2",
            "beta": 0.1,
            "sync_ref_steps": 2,
        },
        "evaluate": {"num_beams": 10, "bootstrap_samples": 20},
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(config))
    return folder / "shop.yaml"


def artefacts(folder: Path) -> dict[str, Any]:
    """What every file of a folder holds, by name: its digest, or its JSON; of an evaluation without
    ``cost``, which a clock decides.
    """
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("[!.]*") if path.is_file()):
        if file.suffix in (".json", ".jsonl"):
            text = file.read_text(encoding="utf-8")
            rows = text.splitlines() if file.suffix == ".jsonl" else [text]
            found[str(file.relative_to(folder))] = [_timeless(json.loads(row)) for row in rows]
        else:
            found[str(file.relative_to(folder))] = sha256_file(file)
    return found


def _timeless(value: Any) -> Any:
    """JSON without the cost of an evaluation, and without the digests of the file that holds it."""
    if isinstance(value, dict) and value.get("stage") == "evaluate":
        return {key: part for key, part in value.items() if key not in ("files", "manifest_sha256")}
    return (
        {key: part for key, part in value.items() if key != "cost"}
        if isinstance(value, dict)
        else value
    )


def check_whole(run: Path) -> int:
    """Verify every directory of an experiment that has a final name; returns how many."""
    found = [run / name for names in MADE_BY.values() for name in names if name != "evaluate"]
    found += [*run.glob("*.partial/checkpoint-*"), *run.glob("evaluate/*-test")]
    return sum(1 for path in found if path.exists() and verify(path))


class Reference:
    """An experiment that nothing interrupted, and how long its stages took."""

    def __init__(self, folder: Path):
        self.folder, self.seconds = folder, {}
        config = shop(folder)
        for stage in STAGES:
            started = time.monotonic()
            code, said = run(stage, config)
            self.seconds[stage] = time.monotonic() - started
            assert code == 0, said

    def before(self, stage: str, folder: Path) -> Path:
        """A copy as it was before a stage ran; returns its YAML."""
        later = [
            name for other in list(STAGES)[list(STAGES).index(stage) :] for name in MADE_BY[other]
        ]
        shutil.copytree(
            self.folder / "runs", folder / "runs", ignore=shutil.ignore_patterns(*later, ".*")
        )
        text = (
            (self.folder / "shop.yaml")
            .read_text()
            .replace(f"output_dir: {self.folder}", f"output_dir: {folder}")
        )
        (folder / "shop.yaml").write_text(text)
        return folder / "shop.yaml"

    def check(self, stage: str, folder: Path) -> None:
        """Whether a copy's stage now holds what the reference's holds."""
        for name in MADE_BY[stage]:
            found, expected = (artefacts(run / "runs/shop" / name) for run in (folder, self.folder))
            different = [
                file
                for file in sorted({*found, *expected})
                if found.get(file) != expected.get(file)
            ]
            assert not different, "".join(
                f"{file}: {found.get(file)}, expected {expected.get(file)}\n" for file in different
            )[:2000]
        assert not list((folder / "runs/shop").glob("*.partial"))


if __name__ == "__main__":
    _, config_file, *names = sys.argv
    for name in names:
        command(name, Path(config_file))
