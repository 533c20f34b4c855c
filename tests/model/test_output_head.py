"""Log-probabilities from blocks of columns: equal to whole rows of logits, gradients included."""

from types import SimpleNamespace

import pytest
import torch
from peft import TrainableTokensConfig, get_peft_model
from torch import nn

from minionerec.model import output_head as module
from minionerec.model.output_head import (
    LogitsHead,
    OutputHead,
    head_weight,
    output_head,
    vocab_logps,
)
from tests.worlds import tiny_model


def model_with(layer, **config):
    """What a head needs of a model."""
    settings = SimpleNamespace(**config)
    settings.get_text_config = lambda: settings
    return SimpleNamespace(config=settings, get_output_embeddings=lambda: layer)


def pairs(generator, num_rows=20, vocabulary=50, count=35):
    return torch.randint(num_rows, (count,), generator=generator), torch.randint(
        vocabulary, (count,), generator=generator
    )


@pytest.mark.parametrize("kept", [0, 2**25])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "config, finish",
    [
        ({}, lambda x: x),
        ({"final_logit_softcapping": 3.0}, lambda x: 3.0 * torch.tanh(x / 3.0)),
        ({"logit_scale": 0.5}, lambda x: 0.5 * x),
        ({"logits_scaling": 4.0}, lambda x: x / 4.0),
    ],
)
def test_blocks_of_columns_give_the_log_probabilities_and_gradients_of_whole_rows(
    monkeypatch, kept, bias, config, finish
):
    monkeypatch.setattr(
        module.Columns, "blocks", lambda self, rows: [slice(i, i + 7) for i in range(0, 50, 7)]
    )
    monkeypatch.setattr(module, "KEPT_ELEMENTS", kept)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = nn.Linear(8, 50, bias=bias)
    hidden = torch.randn(20, 8, generator=generator, requires_grad=True)
    rows, tokens = pairs(generator)
    weights = torch.randn(35, generator=generator)
    inputs = [hidden, *layer.parameters()]

    expected = finish(layer(hidden)).log_softmax(-1)[rows, tokens]
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    found = vocab_logps(hidden, OutputHead(model_with(layer, **config)), rows, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for a, b in zip(torch.autograd.grad((found * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 511, 512, 513, 1000])
@pytest.mark.parametrize("elements", [1, 3000, 10**6])
def test_the_blocks_of_a_vocabulary_hold_every_column_once(monkeypatch, columns, elements):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": elements})
    found = module.Columns(torch.zeros(columns, 2), None, 1.0, None).blocks(rows=5)
    covered = [column for block in found for column in range(columns)[block]]
    assert covered == list(range(columns))


def test_several_real_blocks_give_what_whole_rows_give(monkeypatch):
    """700 columns in blocks of 256: the last block is not full."""
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": 1})
    torch.manual_seed(0)
    layer, hidden = nn.Linear(8, 700), torch.randn(20, 8, requires_grad=True)
    rows, tokens = pairs(torch.Generator().manual_seed(0), vocabulary=700, count=200)
    inputs = [hidden, *layer.parameters()]
    head = OutputHead(model_with(layer))
    expected = layer(hidden).log_softmax(-1)[rows, tokens]
    found = vocab_logps(hidden, head, rows, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    wanted = torch.autograd.grad(expected.sum(), inputs)
    for a, b in zip(torch.autograd.grad(found.sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    total = head.logsumexp(hidden, torch.arange(3))
    torch.testing.assert_close(total, torch.logsumexp(layer(hidden), -1), atol=1e-5, rtol=0)


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients():
    generator = torch.Generator().manual_seed(0)
    layer, hidden = (
        nn.Linear(8, 50, bias=False),
        torch.randn(20, 8, generator=generator, requires_grad=True),
    )
    rows, tokens = pairs(generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = vocab_logps(hidden, OutputHead(model_with(layer)), rows, tokens)
        expected = layer(hidden).float().log_softmax(-1)[rows, tokens]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.sum().backward()
    assert (
        layer.weight.grad.dtype == hidden.grad.dtype == torch.float32
        and layer.weight.grad.abs().sum() > 0
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_normaliser_counts_every_column_once(monkeypatch, dtype, tolerance):
    """In bfloat16 the columns named exact come from float32 and must not be counted twice."""
    monkeypatch.setattr(
        module.Columns,
        "blocks",
        lambda self, rows: [slice(i, i + 16) for i in range(0, 64, 16)],
    )
    model = tiny_model("qwen2", 64).to(dtype)
    head, hidden = output_head(model), torch.randn(2, 3, 32).to(dtype)
    expected = torch.logsumexp(model.get_output_embeddings()(hidden).float(), -1)
    torch.testing.assert_close(
        head.logsumexp(hidden, torch.arange(40, 60)), expected, atol=tolerance, rtol=0
    )


def test_exact_columns_of_a_bfloat16_model_are_not_rounded():
    """Two columns that differ in the last bit of their float32 products stay apart; rounded to
    bfloat16 they are one.
    """
    layer = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 2.0**-7]]))
    hidden = torch.tensor([[8.0, 1.0]], dtype=torch.bfloat16)
    found = OutputHead(model_with(layer)).columns(hidden, torch.tensor([0, 1]))
    assert found.tolist() == [[8.0, 8.0078125]] and layer(hidden).tolist() == [[8.0, 8.0]]


def test_exact_columns_are_not_rounded_by_autocast_either():
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [1.0 + 2.0**-12]]))
    with torch.autocast("cpu", torch.bfloat16):
        found = OutputHead(model_with(layer)).columns(torch.ones(1, 1), torch.tensor([0, 1]))
    assert found.tolist() == [[1.0, 1.0 + 2.0**-12]]
    found.sum().backward()
    assert layer.weight.grad.tolist() == [[1.0], [1.0]]


def test_new_token_adapters_are_part_of_the_head_until_they_are_switched_off():
    model = tiny_model("qwen2", 64)
    base = model.get_output_embeddings().weight.detach().clone()
    tuned = get_peft_model(
        model, TrainableTokensConfig(token_indices=[60, 61], target_modules=["lm_head"])
    )
    layer = tuned.get_base_model().get_output_embeddings()
    with torch.no_grad():
        layer.trainable_tokens_delta["default"].fill_(0.25)
    weight, _ = head_weight(layer)
    assert (weight[60:62] == 0.25).all() and torch.equal(weight[:60], base[:60])
    with tuned.disable_adapter():
        assert torch.equal(head_weight(layer)[0], base)
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(
        output_head(tuned.get_base_model()).columns(hidden, torch.arange(64)),
        layer(hidden),
        atol=1e-5,
        rtol=0,
    )


def test_an_output_layer_without_a_weight_matrix_gives_whole_rows_of_logits():
    class Odd(nn.Module):
        def forward(self, hidden):
            return hidden @ torch.arange(12.0).view(3, 4)

    head = output_head(model_with(Odd(), logit_scale=2.0))
    assert isinstance(head, LogitsHead)
    hidden = torch.tensor([[1.0, 0.0, 0.0]])  # logits 0 2 4 6
    assert head.columns(hidden, torch.tensor([1, 3])).tolist() == [[2.0, 6.0]]
    expected = torch.tensor([0.0, 2.0, 4.0, 6.0]).log_softmax(-1)[2]
    assert vocab_logps(hidden, head, torch.tensor([0]), torch.tensor([2])).item() == pytest.approx(
        expected.item()
    )
