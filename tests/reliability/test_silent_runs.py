"""Checkpoints, runs and command lines that are not what they seem: refused, said, or ranked as if nothing were wrong.

bash test.sh tests/reliability/test_silent_runs.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import compare
import evaluate
import recommend
import sft
from baselines import run as baselines
from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import UserError
from minionerec.evaluation.results import results
from minionerec.experiment import lineage, parts
from minionerec.experiment.files import sha256_json, write_json
from minionerec.experiment.manifest import MANIFEST, read_manifest, write_manifest
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import evaluation_path, parts_path, stage_path
from minionerec.model import ranking
from minionerec.model.policy import POLICY_FILE, Policy
from minionerec.pages import summary
from minionerec_trainer import RankingTrainer
from tests.reliability.test_lineage import refused, remake
from tests.worlds import tiny_run

SFT = {"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 32, "eval_rows": 10}
SAME = "the same lists"
HISTORIES = [["i1", "i2"], ["i7"], ["i20", "i3", "i4"]]
EMBEDDINGS = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Experiment:
    """An experiment with data, SIDs, an SFT model, its evaluation and a baseline."""
    torch.set_num_threads(1)
    experiment = tiny_run(
        tmp_path_factory.mktemp("made"),
        sft=SFT,
        evaluate={"checkpoint": "sft", "num_beams": 10, "bootstrap_samples": 0},
    ).changed({"baselines.methods": ["popularity"]})
    run_stage("sft", sft.train, experiment)
    run_stage("evaluate", evaluate.rank_and_fuse, experiment)
    run_stage("baselines", baselines.rank_all, experiment)
    return experiment


@pytest.fixture(scope="module")
def expected(made) -> list:
    """What the whole model recommends."""
    return lists(made, stage_path(made, "sft"))


def lists(experiment: Experiment, folder: Path) -> list:
    policy = Policy.load(folder, Catalogue.open(experiment))
    found = policy.recommend(HISTORIES, 10)
    return [[(item.item_id, round(item.score, 4)) for item in row] for row in found]


def copied(made: Experiment, folder: Path, **changes) -> Experiment:
    """The same in a folder of its own, with other settings."""
    shutil.copytree(Path(made.output_dir) / "tiny", folder / "tiny")
    return made.changed({"output_dir": str(folder), **changes})


def plain(made: Experiment, folder: Path) -> Path:
    """The SFT model as a folder without a manifest."""
    shutil.copytree(stage_path(made, "sft"), folder, ignore=shutil.ignore_patterns(MANIFEST))
    return folder


# -------------------------------------------------------------------------------------- checkpoints


def weights(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        tensors = change(load_file(folder / "model.safetensors"))
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})

    return on


def stored_as(dtype: torch.dtype, scale: float = 1.0) -> Callable[[Path], None]:
    return weights(lambda tensors: {name: (t * scale).to(dtype) for name, t in tensors.items()})


def set_in(name: str, **values) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return on


def repeat_in(name: str, before: str, again: str) -> Callable[[Path], None]:
    """A key twice."""

    def on(folder: Path) -> None:
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(before, f"{again}, {before}", 1))

    return on


def without_head(folder: Path) -> None:
    weights(lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"})(folder)


def said_to_be_tied(folder: Path) -> None:
    """The file holds an output matrix of its own."""
    set_in("config.json", tie_word_embeddings=True)(folder)


def spoilt(row: str, value: float) -> Callable[[Path], None]:
    """One row of the input matrix, of a token."""

    def on(folder: Path) -> None:
        token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(row)

        def change(tensors: dict) -> dict:
            tensors[EMBEDDINGS][token] = value
            return tensors

        weights(change)(folder)

    return on


def exchanged_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    for old, new in (("<a_0>", "<x>"), ("<a_1>", "<a_0>"), ("<x>", "<a_1>")):
        text = text.replace(old, new)
    (folder / "tokenizer.json").write_text(text)


def in_parts_too(folder: Path) -> None:
    """An index and the parts that it names, beside another single file."""
    shutil.copy(folder / "model.safetensors", folder / "part.safetensors")
    names = load_file(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]


CHECKPOINTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("whole", lambda folder: None, SAME),
    ("stored in float64", stored_as(torch.float64), SAME),
    ("stored as integers", stored_as(torch.int8, 20), "is stored as I8, expected one of F64, F32, F16, BF16"),
    ("stored in float8", stored_as(torch.float8_e4m3fn), "is stored as F8_E4M3"),
    ("said to be tied, with a matrix of its own", said_to_be_tied, SAME),
    ("without its output matrix", without_head, r"1 weights are missing \(lm_head.weight\)"),
    ("a weight under another name", weights(lambda t: {n.replace("norm.weight", "norm.weights") if n == "model.norm.weight" else n: v for n, v in t.items()}), r"unknown to the model \(model.norm.weights\)"),
    ("a weight too many", weights(lambda t: t | {"model.layers.9.x.weight": t[QUERY].clone()}), "unknown to the model"),
    ("an infinite row of an SID token", spoilt("<a_7>", float("inf")), "one of its weights is NaN or infinite"),
    ("NaN in the row of a token that no prompt has", spoilt("~", float("nan")), SAME),
    ("tokens exchanged in the tokenizer", exchanged_tokens, "its tokenizer is not the one that it was trained with"),
    ("weights twice", in_parts_too, "holds its weights twice"),
    ("an adapter beside it", with_an_adapter, "holds an adapter beside the whole model"),
    ("sampling settings", set_in("generation_config.json", do_sample=True, temperature=9.0, suppress_tokens=[1, 2]), SAME),
    ("an item twice in sids.json", repeat_in("sids.json", '"i0":', '"i0": [7, 2]'), "the key 'i0' is there twice"),
    ("a key twice in the prompt's wording", repeat_in("prompt_template.json", '"name":', '"name": "x"'), "the key 'name' is there twice"),
    ("a key twice in policy.json", repeat_in("policy.json", '"normalize":', '"normalize": "trie"'), "the key 'normalize' is there twice"),
    ("no sids.json", without("sids.json"), "note: .*: has no sids.json: that it was trained .* is taken on trust"),
    ("nothing but the library's files", without("sids.json", "policy.json", "prompt_template.json"), "note: .*: has no sids.json, prompt_template.json, policy.json"),
]  # fmt: skip


@pytest.mark.parametrize(
    "change, outcome", [row[1:] for row in CHECKPOINTS], ids=[row[0] for row in CHECKPOINTS]
)
def test_a_changed_checkpoint_is_refused_said_or_ranks_as_the_whole_one(
    made, expected, tmp_path, capsys, change, outcome
):
    folder = plain(made, tmp_path / "model")
    change(folder)
    try:
        found = lists(made, folder)
    except UserError as error:
        assert outcome != SAME and re.search(outcome, str(error)), error
        return
    said = capsys.readouterr().out
    assert found == expected
    if outcome == SAME:
        assert "note:" not in said
    else:
        assert re.search(outcome, said), said


def test_a_relative_path_that_means_another_checkpoint_elsewhere_is_noticed(
    made, tmp_path, monkeypatch
):
    """The same words, the same settings, another working directory."""
    experiment = copied(made, tmp_path, **{"evaluate.checkpoint": "model"})
    for name in ("here", "there"):
        shutil.copytree(stage_path(made, "sft"), tmp_path / name / "model")
    write_manifest(
        tmp_path / "there/model", with_digest(read_manifest(tmp_path / "there/model") | {"x": 1})
    )
    # Beside each other they are children of the same folder, so that their parents are found
    for name in ("data", "sids"):
        for place in ("here", "there"):
            os.symlink(stage_path(made, name), tmp_path / place / name)
    monkeypatch.chdir(tmp_path / "here")
    run_stage("evaluate", evaluate.rank_and_fuse, experiment)
    assert lineage.is_finished(experiment, "evaluate")
    monkeypatch.chdir(tmp_path / "there")
    said = refused(lambda: lineage.is_finished(experiment, "evaluate"))
    assert said.startswith(f"{evaluation_path(experiment)}: ranks with another checkpoint (")
    assert f"than {tmp_path / 'there/model'} (" in said


def test_a_checkpoint_by_its_path_whose_sids_were_made_again_is_refused(made, tmp_path):
    """In the experiment that it comes from; they are not what it was trained on."""
    other = copied(made, tmp_path)
    remake(other, "sids", ("data",), lambda folder: (folder / "log.jsonl").write_text("{}"))
    path = stage_path(other, "sft")
    said = refused(lambda: lineage.open_checkpoint(made, str(path)))
    assert said.startswith(f"{path}: was made from another {stage_path(other, 'sids')} (manifest ")


def with_digest(manifest: dict) -> dict:
    """A manifest whose digest is that of its content."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return content | {"manifest_sha256": sha256_json(content)}


# ---------------------------------------------------------------------------------------- backbones


def another_backbone(folder: Path, seed: int) -> None:
    """Random weights of the same sizes."""
    torch.manual_seed(seed)
    weights(lambda tensors: {n: torch.randn_like(t) * 0.1 for n, t in tensors.items()})(folder)


def with_backbone(made: Experiment, folder: Path, **changes) -> Experiment:
    """An experiment that is to fine-tune a folder's model."""
    backbone = plain(made, folder / "backbone")
    another_backbone(backbone, 1)
    experiment = copied(made, folder, **{"model.backbone": str(backbone), **changes})
    shutil.rmtree(stage_path(experiment, "sft"))
    return experiment


def test_a_backbone_that_was_replaced_after_sft_is_noticed(made, tmp_path):
    experiment = with_backbone(made, tmp_path)
    run_stage("sft", sft.train, experiment)
    assert lineage.is_finished(experiment, "sft")
    another_backbone(tmp_path / "backbone", 2)
    path = stage_path(experiment, "sft")
    said = refused(lambda: lineage.is_finished(experiment, "sft"))
    assert said.startswith(f"{path}: {tmp_path / 'backbone'} has changed since it was read;")
    # One that is gone says nothing: a run may be moved to a machine that never had it
    shutil.rmtree(tmp_path / "backbone")
    assert lineage.is_finished(experiment, "sft")


def test_adapters_are_not_continued_on_another_backbone(made, tmp_path, monkeypatch):
    experiment = with_backbone(made, tmp_path, **{"model.tune": "lora"})
    original = RankingTrainer.save_checkpoint

    def save_and_die(self, *args):
        original(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RankingTrainer, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run_stage("sft", sft.train, experiment)
    another_backbone(tmp_path / "backbone", 2)
    said = refused(lambda: run_stage("sft", sft.train, experiment))
    assert re.search(r"sft.partial/checkpoint-\d+: .*backbone has changed since it was read", said)


# --------------------------------------------------------------------------------------- evaluation


def test_parts_of_an_evaluation_that_were_exchanged_are_ranked_again(made, tmp_path, monkeypatch):
    """By their names as well: a name goes with what is in the file, and with its place."""
    monkeypatch.setattr(ranking, "USERS_PER_FORWARD", 4)
    experiment = copied(made, tmp_path, **{"evaluate.batch_size": 4})
    path = evaluation_path(experiment)
    whole = (path / "predictions.jsonl").read_bytes()
    shutil.rmtree(path)
    kept = parts_path(path)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stage("evaluate", evaluate.rank_and_fuse, experiment)
    first, second = sorted(kept.glob("part-*"))[:2]
    contents = (first.read_bytes(), second.read_bytes())
    digests = [file.name.split(".")[1] for file in (first, second)]
    for file in (first, second):
        file.unlink()
    (kept / f"part-00000.{digests[1]}.jsonl").write_bytes(contents[1])
    (kept / f"part-00001.{digests[0]}.jsonl").write_bytes(contents[0])
    run_stage("evaluate", evaluate.rank_and_fuse, experiment)
    assert (path / "predictions.jsonl").read_bytes() == whole


def test_a_part_of_another_run_is_no_part(tmp_path):
    for name, beams in (("a", 10), ("b", 50)):
        parts.open_parts(tmp_path / name, {"num_beams": beams})
        parts.write_part(tmp_path / name, 0, ["{}"])
    (part,) = (tmp_path / "a").glob("part-*")
    shutil.rmtree(tmp_path / "b")
    parts.open_parts(tmp_path / "b", {"num_beams": 50})
    shutil.copy(part, tmp_path / "b")
    assert list(parts.read_parts(tmp_path / "a", 1)) == [["{}"]]
    assert list(parts.read_parts(tmp_path / "b", 1)) == [None]


def test_lists_with_and_without_what_users_had_are_told_apart(made, tmp_path, capsys):
    """They answer other questions: in one table and side by side they carry a mark and a line."""
    experiment = copied(made, tmp_path, **{"evaluate.exclude_history": True})
    shutil.rmtree(evaluation_path(experiment))
    run_stage("evaluate", evaluate.rank_and_fuse, experiment)
    own = evaluation_path(experiment)
    rule = stage_path(experiment, "baselines") / "popularity"
    capsys.readouterr()
    summary.main(experiment)
    compare.main([str(own), str(rule), "--samples", "100"])
    said = capsys.readouterr().out
    assert "exclude_history: false for popularity; true for SFT: not measured alike" in said
    assert "exclude_history: true for sft; false for popularity: not measured alike" in said


def test_a_baseline_of_the_first_versions_is_known_by_its_metrics(made, tmp_path):
    """Their manifests do not name the method; a copy under another name is refused all the same."""
    experiment = copied(made, tmp_path)
    folder = stage_path(experiment, "baselines")
    manifest = read_manifest(folder / "popularity")
    del manifest["method"]
    write_manifest(folder / "popularity", with_digest(manifest))
    assert lineage.is_finished(experiment, "baselines")
    assert [result.name for result in results(experiment)] == ["popularity", "SFT"]
    shutil.copytree(folder / "popularity", folder / "markov")
    both = experiment.changed({"baselines.methods": ["popularity", "markov"]})
    assert "method is 'popularity', expected 'markov'" in refused(
        lambda: lineage.is_finished(both, "baselines")
    )


# ------------------------------------------------------------------------------------ command lines


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--history", ","], "--history: got ',', expected item ids with commas"),
        (["--history", "i1;i2"], "1 of 1 ids are not in"),
        (["--history", "I1"], "1 of 1 ids are not in .*; ids look like 'i0'"),
        (["--history", "i1", "--k", "0"], "--k: got '0'"),
        (["--history", "i1", "--k", "2.0"], "--k: got '2.0'"),
        (["--history", "i1", "--history", "i2"], "--history is given twice"),
        (["--history", "i1", "--K", "3"], "--K: unknown key"),
        (["--history", "i1", "--evaluate.checkpoint", "SFT"], "evaluate.checkpoint: got 'SFT'"),
        (["--history", "i1", "--evaluate.checkpoint", "sft "], "evaluate.checkpoint: got 'sft '"),
        (["--history", "i1", "--name", "my run"], "name: got 'my run'"),
        (["--history", "i1", "--name", "../tiny"], "name: got '../tiny'"),
        (["--history", "i1", "--name", "Tiny"], "Tiny/data not found"),
        (["--history", "i1", "--seed=1", "--seed", "1"], "--seed is given twice"),
        (["--history", "i1", "--seed", "43"], "was made with other settings \\(seed: 42 -> 43\\)"),
    ],
)
def test_a_command_line_that_says_something_else_is_refused(
    made, tmp_path, monkeypatch, flags, words
):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(made.model_dump()))
    monkeypatch.setattr("sys.argv", ["recommend.py", "--config", str(file), *flags])
    assert re.search(words, refused(recommend.main))


def test_the_companions_of_a_checkpoint_say_its_vocabulary(made):
    """Without this note the tokenizer of another model would be taken for its own."""
    content = json.loads((stage_path(made, "sft") / POLICY_FILE).read_text())
    tokenizer = AutoTokenizer.from_pretrained(stage_path(made, "sft"))
    assert content["vocabulary_sha256"] == sha256_json(tokenizer.get_vocab())


def test_a_checkpoint_of_the_first_versions_needs_no_vocabulary(made, expected, tmp_path):
    folder = plain(made, tmp_path / "model")
    content = json.loads((folder / POLICY_FILE).read_text())
    del content["vocabulary_sha256"]
    write_json(folder / POLICY_FILE, content)
    assert lists(made, folder) == expected
