"""The copy that decodes while FSDP shards what is trained; shards of two processes are tried in
tests/commands/test_sharded.py.
"""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from minionerec.training.sharded import WholeCopy, decoder_of
from tests.worlds import tiny_model


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, report_to=[])


@pytest.fixture
def sharded_launch(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")


def test_a_model_that_is_not_sharded_decodes_itself(arguments):
    model = tiny_model("qwen2", 40)
    assert decoder_of(model, arguments) is model


def test_the_copy_rounds_weights_and_nothing_else(arguments, sharded_launch):
    """Frequencies of positions in bfloat16 would move far tokens; tied tables stay one."""
    model = tiny_model("qwen2", 40, tie_word_embeddings=True)
    before = copy.deepcopy(model.state_dict())
    found = decoder_of(model, arguments)
    for own, whole in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, whole.bfloat16()) and not own.requires_grad
    buffers = dict(model.named_buffers())
    assert buffers
    for name, buffer in found.named_buffers():
        assert torch.equal(buffer, buffers[name]) and buffer.dtype == buffers[name].dtype
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    # What is trained is as it was, also after the copy has changed
    with torch.no_grad():
        found.get_input_embeddings().weight.zero_()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())


def test_the_copy_has_the_weights_of_the_step_and_of_a_checkpoint(
    arguments, sharded_launch, tmp_path
):
    model = tiny_model("qwen2", 40)
    whole = WholeCopy(decoder_of(model, arguments))
    table = model.get_input_embeddings().weight

    def is_up_to_date(step):
        found = whole.at(step, model).get_input_embeddings().weight
        return torch.equal(found, table.bfloat16())

    model.save_pretrained(tmp_path / "first")
    assert is_up_to_date(0)
    with torch.no_grad():
        table.add_(1.0)
    # Within a step nobody gathers again: weights only change between steps
    assert not is_up_to_date(0) and is_up_to_date(1)
    whole.load(tmp_path / "first", model)
    assert torch.equal(
        table, load_file(tmp_path / "first/model.safetensors")["model.embed_tokens.weight"]
    )
    assert is_up_to_date(1)


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_model_writes_the_files_of_one_process(arguments, sharded_launch, tmp_path, tied):
    model = tiny_model("qwen2", 40, tie_word_embeddings=tied)
    whole = WholeCopy(decoder_of(model, arguments))
    assert whole.plain(model, wanted=False) is None
    whole.plain(model, wanted=True).save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "one")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        written = (tmp_path / "plain" / name).read_bytes()
        assert written == (tmp_path / "one" / name).read_bytes(), name
    assert json.loads((tmp_path / "plain/config.json").read_text())["dtype"] == "float32"
