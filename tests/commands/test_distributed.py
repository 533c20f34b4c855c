"""Two processes under accelerate (gloo) against one: the same steps, weights, metrics and
predictions; one message for an error.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import evaluate
import rl
import sft
from minionerec.catalogue import inputs
from minionerec.errors import UserError
from minionerec.experiment import processes
from minionerec.experiment.config import read_experiment
from minionerec.experiment.stages import evaluation_path, stage_path
from minionerec.model import backbone
from tests.worlds import tiny_run, weights_digest

ROOT = Path(__file__).resolve().parents[2]
ACCELERATE = ROOT / "configs" / "accelerate"
TOLERANCE = 1e-5

# What may go wrong when a step is shared: last batches that do not divide, rows of other lengths,
# dropout, noise, groups without a gradient, reused rollouts, an output head of its own.
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
MODEL = {"template": "compact", "text_vocab_size": 300}
SFT = {
    "tasks": {"sid_to_sid": 1.0},
    "epochs": 2,
    "batch_size": 32,
    "micro_batch_size": 8,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "eval_rows": 20,
    "evals_per_epoch": 2,
}
RL = {
    "num_generations": 4,
    "batch_size": 16,
    "micro_batch_size": 8,
    "evals": 3,
    "eval_rows": 20,
    "eval_beams": 10,
    "learning_rate": 1e-3,
}
WORLDS = {
    "text": {
        "model": MODEL | {"config": QWEN | {"tie_word_embeddings": True}},
        "sft": SFT
        | {
            "tasks": {"sid_to_sid": 1.0, "sid_to_title": 1.0},
            "micro_batch_size": 4,
            "dropout": 0.1,
        },
        "rl": RL
        | {
            "batch_size": 20,
            "micro_batch_size": 5,
            "epochs": 1.4,
            "rollout": "gumbel",
            "beta": 0.1,
            "kl": "exact",
            "sync_ref_steps": 3,
            "sft_weight": 0.1,
        },
    },
    "trie": {
        "model": MODEL | {"config": QWEN | {"tie_word_embeddings": False}, "normalize": "trie"},
        "sft": SFT
        | {
            "tasks": {"sid_to_sid": 1.0, "sid_to_title": 0.5},
            "micro_batch_size": 2,
            "group_by_user": True,
            "patience": 1,
            "soft_labels": {"top_k": 3, "final_weight": 0.1},
        },
        "rl": RL
        | {
            "num_generations": 3,
            "micro_batch_size": 1,
            "epochs": 0.6,
            "learning_rate": 1e-2,
            "beta": 0.0,
            "num_iterations": 2,
            "sft_weight": 0.1,
            "anchor": "labels",
        },
    },
    "lora": {
        "model": MODEL
        | {"config": QWEN | {"tie_word_embeddings": True}, "tune": "lora", "lora_rank": 2},
        "sft": SFT | {"soft_labels": {"top_k": 3}},
        "rl": RL | {"epochs": 1.0, "learning_rate": 1e-2, "beta": 0.1},
    },
}


def world(folder, name, copied_from=None, stages=()):
    """A tiny world with its YAML; finished stages are copied from another one."""
    experiment = tiny_run(folder, **WORLDS[name])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment.model_dump()))
    for stage in stages:
        shutil.copytree(copied_from / "tiny" / stage, folder / "tiny" / stage)
    return folder / "tiny.yaml"


def environment(config):
    """As a user's shell: no variable of pytest's own process, no GPU."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ACCELERATE_", "FSDP_")) and key != "RANK"
    }
    return kept | {
        "ACCELERATE_CONFIG": str(config),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VIRTUAL_ENV": sys.prefix,
    }


def configuration(folder, kind):
    """A shipped launch file, on two CPU processes."""
    shipped = yaml.safe_load(
        (ACCELERATE / {"ddp": "cpu_processes.yaml", "fsdp": "fsdp.yaml"}[kind]).read_text()
    )
    file = folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(shipped | {"use_cpu": True, "num_processes": 2}))
    return file


def launch(folder, kind, *words, code=0, faults=()):
    """Stages in two processes, started with what the shell scripts use; returns what they printed."""
    options = ["--config_file", str(configuration(folder, kind))]
    faults = (
        "--faults",
        ",".join([*(["fsdp_on_cpu"] if kind == "fsdp" else []), *faults, "show_sharding"]),
    )
    command = [
        sys.executable,
        "-m",
        "minionerec.experiment.accelerated",
        *options,
        str(ROOT / "tests/stages.py"),
        *faults,
        *words,
    ]
    done = subprocess.run(
        command,
        env=environment("") | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == code, (
        f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-5000:]}"
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """SFT, RL and evaluation in this process, each world once, when it is first asked for."""
    done = {}

    def run(name):
        if name not in done:
            torch.set_num_threads(1)
            folder = done[name] = tmp_path_factory.mktemp(f"alone-{name}")
            experiment = read_experiment(world(folder, name), {"evaluate.checkpoint": "rl"})
            for stage in (sft, rl):
                stage.train(experiment, stage_path(experiment, stage.__name__))
            evaluate.evaluate(experiment, evaluation_path(experiment))
        return done[name]

    return run


@pytest.fixture(scope="module")
def together(tmp_path_factory, alone):
    """The same in two processes; RL and evaluation start from what one process has written. ->
    folder per stage, output.
    """
    done = {}

    def run(kind, name):
        if (kind, name) not in done:
            folder, one = tmp_path_factory.mktemp(f"{kind}-{name}"), alone(name)
            words = [
                f"{world(folder / 'sft', name)}:sft",
                f"{world(folder / 'rl', name, one, ['sft'])}:rl",
                f"{world(folder / 'evaluate', name, one, ['sft', 'rl'])}:evaluate:evaluate.checkpoint=rl:evaluate.batch_size=32",
            ]
            done[kind, name] = folder, launch(folder, kind, *words)
        return done[kind, name]

    return run


def steps(folder, stage):
    return [
        json.loads(line)
        for line in (folder / "tiny" / stage / "log.jsonl").read_text().splitlines()
    ]


def largest_difference(one, two):
    """Over all numbers of all rows of two logs, which must have the same rows and keys."""
    assert [sorted(row) for row in one] == [sorted(row) for row in two]
    return max(abs(a[key] - b[key]) for a, b in zip(one, two, strict=True) for key in a)


SLOW = pytest.mark.slow
CASES = [
    ("ddp", "text"),
    ("ddp", "trie"),
    ("fsdp", "text"),
    *(pytest.param(*case, marks=SLOW) for case in (("fsdp", "trie"), ("ddp", "lora"))),
]


@pytest.mark.parametrize("kind, name", CASES)
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_two_processes_take_the_steps_of_one(alone, together, kind, name, stage):
    """Loss, gradient norm, rollout metrics and validation of every step, and the weights in the
    end.
    """
    one, (folder, printed) = alone(name), together(kind, name)
    expected, found = steps(one, stage), steps(folder / stage, stage)
    losses = [row["loss"] for row in expected if "loss" in row]
    assert (
        len(losses) >= 6
        and max(losses) - min(losses) > 1e-4
        and all(row["grad_norm"] > 0 for row in expected if "loss" in row)
    )
    assert largest_difference(expected, found) <= TOLERANCE
    a, b = (
        load_file(path / "tiny" / stage / "model.safetensors") for path in (one, folder / stage)
    )
    assert a.keys() == b.keys()
    for key, weight in a.items():
        torch.testing.assert_close(b[key], weight, atol=TOLERANCE, rtol=0, msg=key)
    shares = [float(share) for share in re.findall(r"share of the weights: ([\d.]+)", printed)]
    assert (
        all(share < 0.6 if kind == "fsdp" else name == "lora" or share == 1 for share in shares)
        and len(shares) == 2
    )


@pytest.mark.parametrize("kind, name", CASES)
def test_two_processes_write_the_same_predictions_and_metrics(alone, together, kind, name):
    one, (folder, _) = alone(name), together(kind, name)
    alone_path, shared_path = (
        one / "tiny/evaluate/rl-test",
        folder / "evaluate/tiny/evaluate/rl-test",
    )
    assert (alone_path / "predictions.jsonl").read_bytes() == (
        shared_path / "predictions.jsonl"
    ).read_bytes()
    expected, found = (
        json.loads((path / "metrics.json").read_text()) for path in (alone_path, shared_path)
    )
    assert found.pop("cost").keys() == expected.pop("cost").keys()
    assert found == expected


@pytest.mark.parametrize("kind, name", CASES)
def test_checkpoints_of_two_processes_load_as_plain_ones(together, kind, name):
    folder, _ = together(kind, name)
    for stage in ("sft", "rl"):
        path = folder / stage / "tiny" / stage
        assert not list(path.glob("*.bin")) and not list(path.parent.glob(f"{stage}.partial"))
        assert json.loads((path / "config.json").read_text())["architectures"] == [
            "Qwen2ForCausalLM"
        ]
        stored, loaded = (
            load_file(path / "model.safetensors"),
            AutoModelForCausalLM.from_pretrained(path).state_dict(),
        )
        assert all(torch.equal(loaded[key], weight) for key, weight in stored.items())


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=SLOW)])
def test_two_processes_resume_in_the_middle_of_the_second_epoch(together, tmp_path, kind):
    """To the same bits as without the interruption: order of the rows, optimiser state and noise
    included.
    """
    whole, _ = together(kind, "text")
    config = world(tmp_path / "cut", "text")
    assert "process" in launch(
        tmp_path, kind, f"{config}:sft", code=9, faults=["die_at_third_save"]
    )
    partial = tmp_path / "cut/tiny/sft.partial"
    newest = max(partial.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    epoch = json.loads((newest / "trainer_state.json").read_text())["epoch"]
    assert epoch > 1 and not math.isclose(epoch, round(epoch))
    AutoModelForCausalLM.from_pretrained(newest)
    assert f"continuing from {newest}" in launch(tmp_path, kind, f"{config}:sft")
    assert steps(tmp_path / "cut", "sft") == steps(whole / "sft", "sft")
    assert weights_digest(tmp_path / "cut/tiny/sft") == weights_digest(whole / "sft/tiny/sft")


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            "nan_in_second_process",
            "step 3: the loss is nan; all parameters are finite; the last good checkpoint is "
            "PARTIAL/checkpoint-2; lower the learning rate or check the data",
        ),
        ("mistake_in_second_process", "row 7: too long; shorten it"),
    ],
)
def test_an_error_of_one_process_stops_both_with_one_message(tmp_path, fault, message):
    """Even if it is not the first process, which prints for all."""
    printed = launch(
        tmp_path, "ddp", f"{world(tmp_path / 'w', 'trie')}:sft", code=2, faults=[fault]
    )
    message = message.replace("PARTIAL", str(tmp_path / "w/tiny/sft.partial"))
    assert [line for line in printed.splitlines() if line][-1] == message and printed.count(
        message
    ) == 1
    assert "Traceback" not in printed


def test_sigterm_to_the_script_saves_and_the_same_command_ends_in_the_same_bits(together, tmp_path):
    """As a user stops and continues two processes: ``bash sft.sh`` with ACCELERATE_CONFIG."""
    whole, _ = together("ddp", "text")
    config = world(tmp_path / "w", "text")
    command = ["bash", str(ROOT / "sft.sh"), "--config", str(config)]
    variables = environment(configuration(tmp_path, "ddp"))
    running = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while (
        not list((tmp_path / "w/tiny/sft.partial").glob("checkpoint-*")) and running.poll() is None
    ):
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    printed, errors = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM, printed + errors
    assert (
        re.search(
            r"stopped by signal 15 at step \d+, which is saved; the same command continues", printed
        )
        and "Traceback" not in errors
    )
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights_digest(tmp_path / "w/tiny/sft") == weights_digest(whole / "sft/tiny/sft")


@pytest.mark.parametrize("name", sorted(path.name for path in ACCELERATE.glob("*.yaml")))
def test_every_shipped_launch_file_is_read_by_accelerate_as_it_is_meant(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    assert load_config_from_file(str(ACCELERATE / name)).compute_environment == "LOCAL_MACHINE"
    words = ["--config_file", str(ACCELERATE / name), "--num_processes", "2", "sft.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.use_fsdp == name.endswith("fsdp.yaml") and args.use_deepspeed == (
        name == "deepspeed_zero2.yaml"
    )
    if args.use_deepspeed:
        assert (args.zero_stage, args.gradient_accumulation_steps, args.gradient_clipping) == (
            2,
            "auto",
            "auto",
        )
    if args.use_fsdp:
        assert (
            str(args.fsdp_version),
            args.fsdp_state_dict_type,
            args.fsdp_cpu_ram_efficient_loading,
        ) == ("2", "FULL_STATE_DICT", False)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: got 1, expected 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "True"},
            "fsdp_cpu_ram_efficient_loading: got True, expected false",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
            "expected FULL_STATE_DICT",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "zero_stage: got 3",
        ),
    ],
)
def test_a_launch_configuration_that_hides_weights_from_decoding_is_refused(
    monkeypatch, variables, message
):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=re.escape(message)):
        processes.check_launch()


def test_adapters_are_refused_under_fsdp_in_one_line(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        UserError, match="model.tune: got lora, expected full: FSDP cannot share out the token rows"
    ):
        processes.check_launch("lora")


def test_a_deep_copy_of_a_model_runs_its_own_weights(tmp_path):
    """FSDP decodes with a copy; a copy whose forward were bound to the original would rank with old
    weights.
    """
    import copy

    experiment = tiny_run(tmp_path)
    samples, sids = inputs.load_catalogue(
        experiment,
        stage_path(experiment, "data"),
        stage_path(experiment, "sids"),
    )
    model, _ = backbone.build(experiment.model, sids, inputs.texts(samples.items), 0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_output_embeddings().weight.zero_()
        assert (
            twin(input_ids=torch.tensor([[1, 2]])).logits.abs().max()
            == 0
            < model(input_ids=torch.tensor([[1, 2]])).logits.abs().max()
        )
