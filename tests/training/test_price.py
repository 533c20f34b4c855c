"""What a training is said to cost: counted by hand, and by autograd itself."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import torch

import rl
import sft
from minionerec.experiment.run import run_stage
from minionerec.experiment.stages import stage_path
from minionerec.model.token_trees import pack_trees
from minionerec.training import price
from tests.worlds import tiny_model, tiny_run


def kept_bytes(model: torch.nn.Module, tokens: int, bf16: bool) -> int:
    """Bytes that autograd keeps for the backward pass over a tree of about so many tokens."""
    rng = random.Random(0)
    rows = [[rng.randrange(50) for _ in range(40)] for _ in range(tokens // 40)]
    tree = pack_trees(rows)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    slots = torch.arange(tree.input_ids.numel() - 1)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(tree=tree, slots=slots, readout=lambda hidden, head: hidden.float().sum())
    kept = sum(storage.nbytes() for storage in storages.values())
    # Autocast's copies of the matrices are counted with the weights
    return kept - 2 * price.count_weights(model).body if bf16 else kept


@pytest.mark.parametrize("family, within", [("llama", 0.2), ("qwen2", 0.2), ("qwen3", 0.3)])
@pytest.mark.parametrize("width, inner", [(64, 128), (64, 512), (128, 256)])
@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_those_that_autograd_keeps(family, within, width, inner, bf16):
    shape = {"hidden_size": width, "intermediate_size": inner, "head_dim": width // 4}
    model = tiny_model(family, 50, num_key_value_heads=4, **shape).train()
    _, said = price.memory(
        model, price.count_weights(model), 800, bf16=bf16, checkpointing=False, copies=0
    )
    # Two blocks keep theirs, and the gradients of one are there at a time
    assert said == pytest.approx(kept_bytes(model, 800, bf16) * 3 / 2, rel=within)


def test_weights_operations_and_states_of_a_model_are_those_counted_by_hand():
    model = tiny_model("llama", 50)
    # H 32, I 64, 4 heads and 2 of keys and values, each 8 wide: q and o 32 x 32, k and v 32 x 16;
    # gate, up and down 32 x 64; two norms a block and one behind both blocks
    body = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    weights = price.count_weights(model)
    assert weights == price.Weights(body + 2 * 50 * 32, body + 2 * 50 * 32, body, False)
    assert price.operations(weights, 10) == 6 * body * 10
    assert price.operations(weights, 10, passes=2) == 10 * body * 10
    states, _ = price.memory(model, weights, 1, bf16=False, checkpointing=False, copies=1)
    assert states == 4 * 5 * weights.total  # weights, a reference, gradients and two moments
    # Four processes share all of it, and each has a copy that decodes
    for bf16, size in ((False, 4), (True, 2)):
        shared, _ = price.memory(
            model, weights, 1, bf16=bf16, checkpointing=False, copies=1, shards=4
        )
        assert shared == (4 * 5 / 4 + size) * weights.total
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    frozen = price.count_weights(model)
    assert frozen == price.Weights(weights.total, 50 * 32, body, True)
    assert price.operations(frozen, 10) == 4 * body * 10


def test_tokens_of_an_epoch_are_scaled_up_from_its_first_batches():
    batches = [[0, 1], [], [2, 3]] + [[4]] * 100
    tokens = price.count_tokens(iter(batches), 34, lambda batch: 10 * len(batch))
    # 16 batches, one of them without rows: 2 + 2 + 13 rows, half of 34
    assert tokens == price.Tokens(340.0, 20)


def test_the_other_dtype_is_advised_where_a_cpu_is_known_to_be_faster_with_it():
    amx = {"avx512f", "amx_bf16", "avx512_bf16"}
    for_bfloat16 = (
        "\nadvice: this CPU has AMX; a model as wide trains faster with model.dtype: bfloat16"
    )
    for_float32 = "\nadvice: this CPU has no bfloat16 products; model.dtype: float32 is far faster"
    assert price.dtype_advice(False, 576, amx) == for_bfloat16
    assert price.dtype_advice(True, 64, {"avx512f"}) == for_float32
    silent = [(False, 128, amx), (False, 576, {"avx512_bf16"}), (True, 576, amx), (True, 64, set())]
    assert [price.dtype_advice(*case) for case in silent] == [""] * 4


def test_out_of_memory_names_the_next_thing_to_lower():
    steps = [(64, False, "full"), (1, False, "full"), (1, True, "full"), (1, True, "lora")]
    advice = [price.next_to_lower("rl", *step) for step in steps]
    assert advice[0].startswith("rl.micro_batch_size from 64 to 32")
    assert "gradient_checkpointing: true" in advice[1]
    assert "model.tune: lora" in advice[2]
    assert "smaller model.backbone" in advice[3]


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_dry_run_says_what_a_training_costs_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(price, "TIMED_STEPS", (1, 2))
    experiment = tiny_run(tmp_path)
    folder = stage_path(experiment, "sft").parent
    before = left_behind(folder)
    with pytest.raises(SystemExit) as ended:
        run_stage("sft", partial(sft.train, dry_run=True), experiment)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for words in ("an epoch: ", "memory: ", "estimate: ", "dry run: nothing was written"):
        assert words in said
    assert left_behind(folder) == before
    # A real run says the same, and continues to its end
    run_stage("sft", sft.train, experiment)
    assert "estimate: " in capsys.readouterr().out
    before = left_behind(folder)
    with pytest.raises(SystemExit):
        run_stage("rl", partial(rl.train, dry_run=True), experiment)
    assert "estimate: " in capsys.readouterr().out
    assert left_behind(folder) == before


def test_epochs_that_steps_do_not_divide_are_told_with_two_decimals() -> None:
    tokens = price.Tokens(per_epoch=1000.0, largest=10)
    told = price.describe(tokens, 2.0, 64 / 165, (0.0, 0.0), None)
    assert "; 0.39 epochs: 0.78\n" in told
