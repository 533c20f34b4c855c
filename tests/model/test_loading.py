"""What lies in a model folder: all weights or a refusal, and one line for whatever else it may
hold.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertModel

from minionerec.catalogue.sids import load_sids
from minionerec.errors import UserError
from minionerec.experiment import artifacts
from minionerec.experiment.settings import Experiment, ModelSettings, SidSettings
from minionerec.model import backbone
from minionerec.model.loading import check_encoder
from minionerec.model.probes import mixes_tokens_otherwise
from minionerec.model.vocabulary import train_tokenizer
from rqvae.embeddings.encoder import load_encoder
from tests.worlds import save_encoder, tiny_model

TEXTS = ["red drill for walls", "blue saw for wood"] * 5
BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sound model folder."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    tokenizer = train_tokenizer(TEXTS, 270)
    model = tiny_model("qwen2", len(tokenizer), hidden_size=16, intermediate_size=16)
    del model.forward
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "model")


def rewrite(folder: Path, change) -> None:
    """Replace the weights by what ``change`` makes of them."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refusal(work) -> str:
    """The one line with which work is refused."""
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sid_table(tmp_path: Path):
    file = tmp_path / "sids.json"
    artifacts.write_json(file, {"sids": {"x": [0, 1], "y": [1, 0]}, "codebook_sizes": [3, 4]})
    return load_sids(file)


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_the_prefix_that_a_wrapper_left_is_stripped_and_said(folder, whole, prefix, capsys):
    rewrite(folder, lambda weights: {prefix + name: value for name, value in weights.items()})
    expected, _ = backbone.load(whole, torch.float32)
    found, _ = backbone.load(folder, torch.float32)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    said = capsys.readouterr().out
    assert said == (
        f"model '{folder}': the names of its weights begin with '{prefix}', which was stripped\n"
    )


def test_prefixes_of_two_wrappers_are_stripped(folder, whole):
    rewrite(folder, lambda weights: {f"module._orig_mod.{k}": v for k, v in weights.items()})
    expected, _ = backbone.load(whole, torch.float32)
    found, _ = backbone.load(folder, torch.float32)
    assert torch.equal(found.lm_head.weight, expected.lm_head.weight)


def test_missing_weights_are_refused_and_listed(folder):
    def without_layer(weights):
        return {name: value for name, value in weights.items() if "layers.1.mlp" not in name}

    rewrite(folder, without_layer)
    assert refusal(lambda: backbone.load(folder, torch.float32)) == (
        f"model '{folder}': 3 weights are missing (model.layers.1.mlp.down_proj.weight, "
        "model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj.weight); "
        "use a checkpoint whose weights and config.json belong together"
    )


def test_unknown_weights_are_refused_and_listed(folder):
    rewrite(folder, lambda weights: weights | {"v_head.weight": torch.zeros(3)})
    said = refusal(lambda: backbone.build(ModelSettings(backbone=str(folder)), None, [], 0))
    assert "1 weights are unknown to the model (v_head.weight)" in said


def test_a_config_with_fewer_layers_than_the_weights_is_refused(folder):
    """The upper layers would be dropped without a word."""
    configure(folder, num_hidden_layers=1, layer_types=["full_attention"])
    said = refusal(lambda: backbone.load(folder, torch.float32))
    assert "weights are unknown to the model (model.layers.1." in said


def test_weights_of_another_size_are_refused_with_both_sizes(folder):
    configure(folder, intermediate_size=24)
    said = refusal(lambda: backbone.load(folder, torch.float32))
    assert (
        "6 weights have another size than config.json says "
        "(model.layers.0.mlp.down_proj.weight: [16, 16], expected [16, 24])" in said
    )


def test_a_buffer_that_older_libraries_saved_is_no_unknown_weight(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda weights: weights | {name: torch.zeros(4)})
    backbone.load(folder, torch.float32)


# ----------------------------------------------------------------------------------------- encoders


def test_an_encoder_may_lack_its_pooler_and_have_a_head_for_another_task(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**BERT)).save_pretrained(tmp_path / "masked")
    assert check_encoder(tmp_path / "masked") == {}


def test_an_encoder_whose_names_have_a_wrappers_prefix_loads_with_the_mapping(tmp_path):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**BERT))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: {f"module.{name}": v for name, v in weights.items()})
    mapping = check_encoder(tmp_path)
    found = BertModel.from_pretrained(tmp_path, key_mapping=mapping)
    assert torch.equal(
        found.encoder.layer[1].output.dense.weight, model.encoder.layer[1].output.dense.weight
    )


@pytest.mark.parametrize(
    "layers, found",
    [(3, "weights are missing (encoder.layer.2."), (1, "unknown to the model (encoder.layer.1.")],
)
def test_an_encoder_with_weights_too_few_or_too_many_is_refused(tmp_path, layers, found):
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path)
    configure(tmp_path, num_hidden_layers=layers)
    assert found in refusal(lambda: check_encoder(tmp_path))


def encoder_world(tmp_path: Path) -> tuple[Path, Experiment]:
    folder = save_encoder(tmp_path, ["red", "drill"])
    return folder, Experiment(name="x", sids=SidSettings(encoder=str(folder)))


def test_a_sentence_encoder_with_a_wrappers_prefix_gives_the_same_vectors(tmp_path):
    folder, experiment = encoder_world(tmp_path)
    cpu = torch.device("cpu")
    expected = load_encoder(experiment, cpu).encode(["red drill"])
    weights = next(folder.rglob("model.safetensors")).parent
    rewrite(weights, lambda found: {f"_orig_mod.{name}": v for name, v in found.items()})
    assert (load_encoder(experiment, cpu).encode(["red drill"]) == expected).all()


def test_a_sentence_encoder_without_a_layers_weights_or_its_pooling_file_is_one_line(tmp_path):
    folder, experiment = encoder_world(tmp_path)
    pooling = next(folder.glob("*Pooling")) / "config.json"
    text = pooling.read_text()
    pooling.unlink()
    assert "cannot be loaded" in refusal(lambda: load_encoder(experiment, torch.device("cpu")))
    pooling.write_text(text)
    weights = next(folder.rglob("model.safetensors")).parent
    rewrite(weights, lambda found: {n: v for n, v in found.items() if "attention.self" not in n})
    said = refusal(lambda: load_encoder(experiment, torch.device("cpu")))
    assert "6 weights are missing (encoder.layer.0.attention.self.key.bias" in said


# ------------------------------------------------------------------------ what else a folder may be


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_folder_is_refused(folder, method):
    configure(folder, quantization_config={"quant_method": method, "bits": 4})
    assert refusal(lambda: backbone.load(folder, torch.float32)) == (
        f"model '{folder}': is quantised ({method}); quantised weights can neither be trained nor "
        "get "
        "tokens added; use the model that it was made from"
    )


def test_an_adapter_folder_is_refused_with_the_way_to_merge_it(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    said = refusal(lambda: backbone.load(folder, torch.float32))
    assert said.startswith(f"model '{folder}': is an adapter without its model; merge it first")


def test_a_git_lfs_pointer_is_refused_with_the_command(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n"
    (folder / "model.safetensors").write_text(pointer)
    assert refusal(lambda: backbone.load(folder, torch.float32)) == (
        f"model '{folder}': model.safetensors is a Git LFS pointer, not the file itself; "
        "run `git lfs pull` where it was cloned"
    )


def test_an_attention_implementation_that_is_not_installed_is_named(folder):
    configure(folder, attn_implementation="flash_attention_2")
    said = refusal(lambda: backbone.load(folder, torch.float32))
    assert "FlashAttention2" in said
    assert said.endswith("install it, or remove the setting that asks for it from config.json")


def test_a_checkpoint_without_its_tokenizer_says_so(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    said = refusal(lambda: backbone.load(folder, torch.float32))
    assert said.startswith(f"model '{folder}': its tokenizer is missing (none of tokenizer.json,")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**12},
        {"vocab_size": "many"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**7},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"hidden_act": "magic"},
        {"rope_parameters": {"rope_type": "magic"}},
        {"quantization_config": ["gptq"]},
        {"dtype": "float99"},
    ],
)
def test_a_config_with_absurd_values_is_one_line(folder, changes):
    configure(folder, **changes)
    assert str(folder) in refusal(lambda: backbone.load(folder, torch.float32))


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", "no json", ""])
def test_a_config_that_is_no_json_object_is_one_line(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder) in refusal(lambda: backbone.load(folder, torch.float32))


# ---------------------------------------------------------------------------- tokens and generation


def test_a_tokenizer_with_more_tokens_than_the_matrix_gets_rows_as_sid_tokens_do(folder, tmp_path):
    before = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(
        folder,
        lambda weights: {
            name: value[:-3].contiguous() if value.shape[0] == len(before) else value
            for name, value in weights.items()
        },
    )
    configure(folder, vocab_size=len(before) - 3)
    assert "its tokenizer has" in refusal(lambda: backbone.load(folder, torch.float32))
    settings = ModelSettings(backbone=str(folder))
    model, tokenizer = backbone.build(settings, sid_table(tmp_path), [], 1)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = table.weight[len(before) - 3 :]
        assert len(rows) == 3 + 7 == len(tokenizer) - (len(before) - 3)
        assert len({tuple(row) for row in rows.tolist()}) == 10  # each its own
        assert 0.3 < rows.std() / table.weight[: len(before) - 3].std() < 3


@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"do_sample": False, "temperature": 0.2},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
    ],
)
def test_settings_for_generation_never_reach_a_checkpoint(folder, tmp_path, generation):
    """Without do_sample the library refuses to save them: at the first checkpoint, after hours."""
    (folder / "generation_config.json").write_text(json.dumps(generation))
    settings = ModelSettings(backbone=str(folder))
    model, _ = backbone.build(settings, sid_table(tmp_path), [], 1)
    model.save_pretrained(tmp_path / "checkpoint")  # as the Trainer does
    saved = json.loads((tmp_path / "checkpoint/generation_config.json").read_text())
    assert not set(generation) & set(saved) and saved["eos_token_id"] == 0


@pytest.mark.parametrize(
    "theirs, meaning",
    [
        ({"x": [0, 1], "y": [1, 0]}, "they mean the same SIDs"),
        ({"x": [2, 1], "y": [1, 0]}, "they meant another catalogue's SIDs"),
        (None, "what they meant is not known"),
    ],
)
def test_a_backbone_that_has_sid_tokens_already_says_what_they_meant(
    folder, tmp_path, capsys, theirs, meaning
):
    table = sid_table(tmp_path)
    model, tokenizer = backbone.build(ModelSettings(backbone=str(folder)), table, [], 1)
    assert capsys.readouterr().out == ""
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    if theirs:
        content = {"sids": theirs, "codebook_sizes": [3, 4]}
        artifacts.write_json(tmp_path / "trained/sids.json", content)
    backbone.build(ModelSettings(backbone=str(tmp_path / "trained")), table, [], 1)
    assert capsys.readouterr().out == (
        f"model '{tmp_path / 'trained'}': has 7 of the 7 SID tokens already and keeps their rows; "
        f"{meaning}\n"
    )


# ------------------------------------------------------------------------------------ architectures

CONVOLUTION = {
    "model_type": "lfm2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "layer_types": ["conv", "full_attention"],
}
STATE = {
    "model_type": "jamba",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "num_experts": 2,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}


@pytest.mark.parametrize("config", [CONVOLUTION, STATE], ids=["convolution", "state"])
def test_a_model_that_mixes_tokens_otherwise_takes_no_trees_also_at_initialisation(
    config, tmp_path, capsys
):
    """Fresh weights are so small that what leaks between neighbours stays below any tolerance."""
    model, _ = backbone.build(ModelSettings(config=config), sid_table(tmp_path), TEXTS, 1)
    assert not model.takes_trees
    assert "takes no token trees; using the exact but slow way" in capsys.readouterr().out


def test_a_leak_that_no_structure_shows_is_found_by_a_probe_with_larger_weights(monkeypatch):
    """LFM2 as if it had no convolution: the tree forward itself is compared, and differs."""
    from minionerec.model import probes
    from minionerec.model.tree_attention import enable_trees

    settings = {key: value for key, value in CONVOLUTION.items() if key != "model_type"}
    torch.manual_seed(0)
    config = AutoConfig.for_model("lfm2", vocab_size=64, **settings)
    model = AutoModelForCausalLM.from_config(config)
    assert mixes_tokens_otherwise(model)
    monkeypatch.setattr(probes, "mixes_tokens_otherwise", lambda _: False)
    assert not enable_trees(model).takes_trees


def test_a_bidirectional_encoder_is_no_causal_model(tmp_path):
    config = {key: value for key, value in BERT.items() if key != "vocab_size"}
    settings = ModelSettings(config={"model_type": "bert", **config})
    assert refusal(lambda: backbone.build(settings, sid_table(tmp_path), TEXTS, 1)) == (
        "model.config: a 'bert' model: is no causal language model: later tokens change what it "
        "says about earlier ones, so that it would see what it is to predict; use a decoder"
    )
