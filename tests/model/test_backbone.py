"""Backbones from folders in hub format: new tokens, padding rows, complete checkpoints,
refusals.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import evaluate
import sft
from minionerec.catalogue.sids import load_sids
from minionerec.catalogue.templates import TEMPLATES
from minionerec.errors import UserError
from minionerec.experiment.files import write_json
from minionerec.experiment.settings import ModelSettings
from minionerec.experiment.stages import evaluation_path, stage_path
from minionerec.model import backbone, vocabulary
from tests.worlds import ARCHITECTURES, tiny_model, tiny_run

TEXTS = [
    "red drill for walls",
    "blue saw for wood",
    "### Instruction: ### Input: ### Response:",
] * 5


def hub_folder(path, model_type="qwen2", padding_rows=0, **changes):
    """A checkpoint as a hub holds it: config, safetensors, tokenizer, and sampling settings in its
    generation config.
    """
    tokenizer = vocabulary.train_tokenizer(TEXTS, 320)
    model = tiny_model(model_type, len(tokenizer) + padding_rows, **changes)
    del model.forward
    model.generation_config = GenerationConfig(do_sample=True, top_k=3, temperature=0.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, len(tokenizer)


def sids(tmp_path):
    file = tmp_path / "sids.json"
    write_json(file, {"sids": {"x": [0, 1], "y": [1, 0]}, "codebook_sizes": [3, 4]})
    return load_sids(file)


@pytest.mark.parametrize("padding_rows", [0, 3, 50])
@pytest.mark.parametrize("tied", [True, False])
def test_every_new_token_gets_a_row_of_its_own_also_where_padding_rows_are_spare(
    tmp_path, tied, padding_rows
):
    folder, known = hub_folder(
        tmp_path / "hub", padding_rows=padding_rows, tie_word_embeddings=tied
    )
    before = AutoModelForCausalLM.from_pretrained(folder)
    model, tokenizer = backbone.build(ModelSettings(backbone=str(folder)), sids(tmp_path), [], 1)
    new = tokenizer.convert_tokens_to_ids(sids(tmp_path).tokens())
    assert new == list(range(known, known + 7))
    assert model.get_input_embeddings().weight.shape[0] == max(
        known + padding_rows, known + 7
    )  # grows, never shrinks
    for side in ("get_input_embeddings", "get_output_embeddings"):
        old, now = getattr(before, side)().weight, getattr(model, side)().weight
        assert torch.equal(old[:known], now[:known])
        assert len({tuple(row) for row in now[new].tolist()}) == 7  # no two alike, none a copy
        reused = [i for i in new if i < len(old)]
        assert not any(torch.equal(old[i], now[i]) for i in reused)
        spread = now[new].std() / old[:known].std()
        assert 0.5 < spread < 2


def test_a_tokenizer_that_knows_the_tokens_is_left_alone(tmp_path):
    folder, _ = hub_folder(tmp_path / "hub")
    model, tokenizer = backbone.build(ModelSettings(backbone=str(folder)), sids(tmp_path), [], 1)
    backbone.save(model, tokenizer, tmp_path / "sids.json", TEMPLATES["alpaca"], tmp_path)
    again, _ = backbone.build(ModelSettings(backbone=str(tmp_path)), sids(tmp_path), [], 2)
    assert torch.equal(model.get_input_embeddings().weight, again.get_input_embeddings().weight)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_runs_sft_and_evaluation_from_a_folder(tmp_path, model_type):
    folder, _ = hub_folder(tmp_path / "hub", model_type)
    experiment = tiny_run(
        tmp_path,
        model={"backbone": str(folder), "template": "alpaca", "dtype": "float32"},
        sft={
            "epochs": 1,
            "batch_size": 64,
            "micro_batch_size": 64,
            "eval_rows": 8,
            "warmup_steps": 0,
            "tasks": {
                "sid_to_sid": 0.5,
                "title_to_sid": 1,
                "sids_to_title": 0.2,
                "titles_to_sid": 0.2,
                "sid_to_title": 1,
                "description_to_sid": 1,
            },
        },
        evaluate={"checkpoint": "sft", "num_beams": 10, "bootstrap_samples": 0},
    )
    path = stage_path(experiment, "sft")
    sft.train(experiment, path)
    names = {p.name for p in path.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "sids.json",
        "prompt_template.json",
        "log.jsonl",
        "curves.png",
        "MANIFEST.json",
    } <= names
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    assert not model.generation_config.do_sample and model.generation_config.top_k is None
    assert len(tokenizer("<a_0><b_7>", add_special_tokens=False)["input_ids"]) == 2
    evaluate.evaluate(experiment, evaluation_path(experiment))
    assert (evaluation_path(experiment) / "metrics.json").is_file()


def test_a_checkpoint_of_other_sids_is_refused_with_both_named(tmp_path):
    write_json(
        tmp_path / "other.json", {"sids": {"x": [0, 2], "y": [1, 0]}, "codebook_sizes": [3, 4]}
    )
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "sids.json").write_bytes((tmp_path / "other.json").read_bytes())
    with pytest.raises(UserError, match="was trained on other SIDs than this experiment's"):
        backbone.check_sids(tmp_path / "ckpt", sids(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"config.json": "{}"},
        {"config.json": '{"model_type": "qwen2"}', "model.safetensors": "broken"},
    ],
)
def test_a_folder_that_holds_no_model_is_one_line(tmp_path, content):
    folder = tmp_path / "empty"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        backbone.load(folder, torch.float32)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_never_read(tmp_path):
    folder, _ = hub_folder(tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        backbone.load(folder, torch.float32)


def test_a_config_that_cannot_be_built_is_one_line(tmp_path):
    with pytest.raises(UserError, match="^model.config: cannot build a 'qwen9' model"):
        backbone.build(ModelSettings(config={"model_type": "qwen9"}), sids(tmp_path), TEXTS, 1)
    with pytest.raises(UserError, match="^model.config: cannot build a 'qwen2' model"):
        backbone.build(
            ModelSettings(
                config={
                    "model_type": "qwen2",
                    "hidden_size": 30,
                    "num_attention_heads": 4,
                    "num_hidden_layers": 1,
                }
            ),
            sids(tmp_path),
            TEXTS,
            1,
        )


def test_a_key_that_a_family_does_not_have_is_refused_with_the_nearest():
    """gpt2 says n_embd and knows hidden_size as another name of it."""
    backbone.check_config_keys("qwen2", ["hidden_size", "rope_theta", "tie_word_embeddings"])
    backbone.check_config_keys("gpt2", ["n_embd", "hidden_size"])
    with pytest.raises(UserError) as caught:
        backbone.check_config_keys("qwen2", ["hiden_size", "num_hidden_layers", "n_layers"])
    first, second = str(caught.value).splitlines()
    assert (
        first == "model.config: hiden_size: no key of a 'qwen2' model; did you mean 'hidden_size'?"
    )
    assert second.startswith("model.config: n_layers: no key of a 'qwen2' model")
