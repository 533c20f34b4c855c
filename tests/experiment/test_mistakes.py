"""Forty plausible mistakes on the command line: each is one line that says what to write.

python -m pytest tests/experiment/test_mistakes.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import recommend
from minionerec.errors import USER_ERROR, UserError
from minionerec.experiment import launch, reuse
from minionerec.experiment.config import read_command_line

CONFIG = "--config configs/quickstart.yaml"
MISTAKES = {
    "": "--config is missing; name a YAML file, e.g. --config configs/quickstart.yaml",
    "-c configs/quickstart.yaml": "write --config FILE",
    "configs/quickstart.yaml": "write --config configs/quickstart.yaml",
    "--config": "--config has no value; write --config VALUE",
    "--config configs/quickstrat.yaml": "no such file",
    f"{CONFIG} {CONFIG}": "--config is given twice; keep one",
    f"{CONFIG} --sft.lr 1e-3": "--sft.lr: unknown key; write sft.learning_rate",
    f"{CONFIG} --rl.lr 1e-3": "write rl.learning_rate",
    f"{CONFIG} --lr 1e-3": "write --sft.learning_rate or --rl.learning_rate",
    f"{CONFIG} --epochs 3": "did you mean 'sids.epochs' or 'sft.epochs'",
    f"{CONFIG} --sft.num_train_epochs 3": "write sft.epochs",
    f"{CONFIG} --sft.epoch 3": "did you mean 'epochs'?",
    f"{CONFIG} --sft.bs 8": "write sft.batch_size",
    f"{CONFIG} --batch 8": "write --sft.batch_size (rows a step)",
    f"{CONFIG} --sft.wd 0.1": "write sft.weight_decay",
    f"{CONFIG} --sft.warmup 3": "write sft.warmup_steps",
    f"{CONFIG} --resume true": "goes on by itself: run the same command again",
    f"{CONFIG} --resume_from_checkpoint x": "goes on by itself",
    f"{CONFIG} --gpus 4": "CUDA_VISIBLE_DEVICES=0,1 picks some",
    f"{CONFIG} --nproc_per_node 4": "GPUs are found by themselves",
    f"{CONFIG} --use_lora true": "write --model.tune lora",
    f"{CONFIG} --model.use_lora true": "write model.tune",
    f"{CONFIG} --model.lora_r 8": "write model.lora_rank",
    f"{CONFIG} --bf16 true": "write --model.dtype bfloat16",
    f"{CONFIG} --model Qwen/Qwen3-0.6B": "write --model.backbone NAME_OR_FOLDER",
    f"{CONFIG} --model_name_or_path x": "write --model.backbone",
    f"{CONFIG} --data my_shop": "write --data.path FOLDER",
    f"{CONFIG} --dataset my_shop": "write --data.path FOLDER",
    f"{CONFIG} --output-dir x": "did you mean 'output_dir'?",
    f"{CONFIG} --out x": "write --output_dir FOLDER",
    f"{CONFIG} --force true": "write --redo STAGE",
    f"{CONFIG} --wandb true": "write --sft.report_to or --rl.report_to",
    f"{CONFIG} --checkpoint sft": "did you mean 'evaluate.checkpoint'?",
    f"{CONFIG} --ckpt sft": "write --evaluate.checkpoint sft, rl or FOLDER",
    f"{CONFIG} --num_beams 20": "did you mean 'evaluate.num_beams'?",
    f"{CONFIG} --training.epochs 3": "unknown section 'training'",
    f"{CONFIG} --sids.num_levels 4": "write sids.codebook_sizes",
    f"{CONFIG} --rl.group_size 8": "write rl.num_generations",
    f"{CONFIG} --rl.kl_coef 0": "write rl.beta",
    f"{CONFIG} --sft.epochs three": "got 'three', expected a whole number",
    f"{CONFIG} --evaluate.exclude_history": "has no value; write --evaluate.exclude_history VALUE",
    f"{CONFIG} --evaluate.exclude_history yes": "got 'yes', expected true or false",
    f"{CONFIG} sft.epochs=3": "write --sft.epochs 3",
    f"{CONFIG} --sids.codebook_sizes [64, 64]": "lists are written with commas and no blanks",
    f"{CONFIG} --sft.tasks sid_to_sid": "expected 'name: value' pairs",
    f"{CONFIG} --data.source csv": "expected one of tables, amazon, minionerec, embedded",
    f"{CONFIG} --name my/run": "expected letters, digits",
    f"{CONFIG} --yes": "--yes belongs to --redo STAGE",
    f"{CONFIG} --redo stf": "did you mean 'sft'?",
    f"{CONFIG} --from runs/nothing": "no experiment's folder with finished stages",
    "--help stf": "expected one of data, sids, model, sft, rl, evaluate, baselines; did you mean 'sft'?",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_plausible_mistake_is_one_line_that_says_what_to_write(words, root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(UserError) as caught:
        launch.main(["sft", *words.split()])
    said = str(caught.value)
    assert MISTAKES[words] in said
    assert "\n" not in said


def test_there_are_forty_of_them():
    assert len(MISTAKES) >= 40


def test_redo_removes_nothing_for_a_stage_that_cannot_start(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(reuse, "apply", lambda *_: pytest.fail("something was removed"))
    words = f"{CONFIG} --redo sft --yes --sft.report_to tensorbord"
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        launch.main(["sft", *words.split()])


@pytest.mark.parametrize(
    "words, message",
    [
        ("--confg c.yaml", "configs/quickstart.yaml; for --confg write --config"),
        (f"{CONFIG} --histroy 1,2", "command line: unknown flag; for --histroy write --history"),
        (f"{CONFIG} --user all", "command line: unknown flag; for --user write --users"),
        (f"{CONFIG} --history 1 --num_beams 9", "did you mean 'evaluate.num_beams'?"),
    ],
)
def test_flags_of_a_command_itself_are_known_by_what_they_are_like(
    words, message, root, monkeypatch
):
    monkeypatch.chdir(root)
    with pytest.raises(UserError) as caught:
        read_command_line("", words.split(), own=recommend.FLAGS)
    said = str(caught.value)
    assert message in said and "\n" not in said


def test_help_of_a_section_is_that_section(capsys, root):
    assert launch.main(["sft", "--help", "sft"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("sft: Stage 2: supervised fine-tuning.\n  sft.tasks = ")
    assert "rl." not in [line.split("=")[0].strip()[:3] for line in shown.splitlines()]
    assert launch.main(["sft", "--help"]) == 0
    whole = capsys.readouterr().out
    places = [
        whole.index(text)
        for text in ("Stage 2:", "Flags of every command", "\n\ndata: ", "\n\nsft: ")
    ]
    assert places == sorted(places)


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "minionerec.experiment.launch", *words]


def test_help_whose_reader_has_gone_ends_without_a_word(root):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nowhere:
        done = subprocess.run(
            command(root, "sft", "--help"),
            cwd=root,
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == ""


@pytest.mark.parametrize("interrupted", [True, False])
def test_an_interrupt_is_one_line_and_the_exit_code_of_the_signal(root, interrupted):
    code = (
        "import signal, os\nfrom minionerec.errors import one_line_errors\n"
        "with one_line_errors():\n"
        f"    {'os.kill(os.getpid(), signal.SIGINT)' if interrupted else 'pass'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    expected = "interrupted; what is finished stays, and the same command goes on or begins again\n"
    assert (done.returncode, done.stderr) == ((130, expected) if interrupted else (0, ""))
    assert USER_ERROR == 2
