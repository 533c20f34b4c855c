"""What each of two processes holds under FSDP, when the copy that decodes is gathered, and what is
saved.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.test_distributed import MODEL, QWEN, RL, SFT, launch, steps, world
from tests.commands.test_distributed import WORLDS as WORLDS_OF_TWO
from tests.worlds import weights_digest

# Weights outweigh whatever else is held; several micro-batches a step; groups that teach nothing,
# also in one process alone, and a KL to a reference that moves
WIDE = {
    "model": MODEL
    | {
        "config": QWEN
        | {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True},
        "dtype": "bfloat16",
    },
    "sft": SFT | {"epochs": 1, "batch_size": 48, "evals_per_epoch": 1},
    "rl": RL
    | {
        "batch_size": 8,
        "micro_batch_size": 2,
        "epochs": 0.28,
        "evals": 2,
        "beta": 0.1,
        "sync_ref_steps": 3,
    },
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """SFT and RL in two processes -> the folder of the experiment, what was printed."""
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(WORLDS_OF_TWO, "wide", WIDE)
        config = world(folder, "wide")
    faults = ["show_gathers", "show_held"]
    return folder, launch(folder, "fsdp", f"{config}:sft", f"{config}:rl", faults=faults)


def test_a_process_holds_its_share_of_everything_and_a_copy_in_bfloat16(wide):
    """Float32 weights, gradients and two moments halved, 2 bytes of the copy; 4 / 2 of a reference.

    After every micro-batch: no whole gradient waits for a step's last one.
    """
    _, printed = wide
    held = re.findall(r"(sft|rl) holds ([\d.]+) bytes a parameter", printed)
    for stage, expected in (("sft", 4 * 4 / 2 + 2), ("rl", 4 * 4 / 2 + 2 + 4 / 2)):
        of_stage = [float(found) for name, found in held if name == stage]
        assert len(of_stage) >= 2, printed
        assert of_stage == pytest.approx([expected] * len(of_stage), abs=0.1)


def test_the_copy_is_gathered_once_for_the_weights_of_a_step(wide):
    """Before the first step, and then for every validation of SFT and all rollouts of RL."""
    folder, printed = wide
    of_sft, of_rl = printed.split("next: bash rl.sh")
    last = steps(folder, "sft")[-1]["step"]
    assert re.findall(r"gathered for step (\d+)", of_sft) == ["0", str(last)]
    last = steps(folder, "rl")[-1]["step"]
    every = [str(step) for step in range(last + 1)]
    assert last >= 4 and re.findall(r"gathered for step (\d+)", of_rl) == every


def test_a_sharded_reference_is_the_policy_until_the_first_step(wide):
    """To the last bit; and processes whose groups teach nothing wait for nobody."""
    folder, _ = wide
    rows = [row for row in steps(folder, "rl") if "kl" in row]
    assert rows[0]["kl"] == 0.0 and all(row["kl"] > 0 for row in rows[1:])
    assert any(0 < row["groups_with_signal"] < 0.5 for row in rows)


def test_what_is_saved_is_float32_as_it_was_trained(wide):
    folder, _ = wide
    for stage in ("sft", "rl"):
        path = folder / "tiny" / stage
        assert json.loads((path / "config.json").read_text())["dtype"] == "float32"
        for name, weight in load_file(path / "model.safetensors").items():
            assert weight.dtype == torch.float32
            is_rounded = torch.equal(weight, weight.bfloat16().float())
            assert not is_rounded or "norm" in name or "bias" in name, name


@pytest.mark.slow
def test_rl_of_a_sharded_reference_that_moves_resumes_to_the_same_bits(tmp_path):
    config = world(tmp_path / "whole", "text")
    launch(tmp_path, "fsdp", f"{config}:sft", f"{config}:rl")
    config = world(tmp_path / "cut", "text", tmp_path / "whole", ["sft"])
    launch(tmp_path, "fsdp", f"{config}:rl", code=9, faults=["die_at_third_save"])
    assert (tmp_path / "cut/tiny/rl.partial/checkpoint-6/ref_model/model.safetensors").is_file()
    assert "continuing from" in launch(tmp_path, "fsdp", f"{config}:rl")
    assert steps(tmp_path / "cut", "rl") == steps(tmp_path / "whole", "rl")
    assert weights_digest(tmp_path / "cut/tiny/rl") == weights_digest(tmp_path / "whole/tiny/rl")
