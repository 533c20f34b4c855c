"""Exports: read back by the other side's own code, or by nothing of ours, they rank as our search
does.
"""

import importlib.util
import json
import math
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minionerec.errors import UserError
from minionerec.experiment.stages import stage_path
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import make_decoder
from minionerec.serving import export
from minionerec.serving.lost_tokens import lost_tokens
from minionerec.serving.recommender import Recommender
from tests.serving.test_recommender import made  # noqa: F401


@pytest.fixture(scope="module")
def recommender(made):  # noqa: F811
    return Recommender.load(stage_path(made, "sft").parent)


@pytest.fixture
def write(made, monkeypatch, tmp_path, capsys):  # noqa: F811
    """Runs the command; returns the folder and what it said."""

    def run(engine):
        run_folder = str(stage_path(made, "sft").parent)
        words = ["--for", engine, "--run", run_folder, "--out", str(tmp_path / engine)]
        monkeypatch.setattr(sys, "argv", ["export", *words])
        export.main()
        return tmp_path / engine, capsys.readouterr().out

    return run


def ranked(recommender, history, count):
    """Item ids of our search."""
    found = recommender.recommend([history], k=count, exclude_history=False, explain=False)
    return [item.item_id for item in found[0]]


def prompt_of(recommender, history):
    return recommender.policy.renderer.prompt("sid_to_sid", recommender.history(history))


def exhaustive(model, prompt, paths):
    """Item ids by the sum of their tokens' log-probabilities, from plain forwards."""
    scores = {}
    for item_id, path in paths.items():
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([prompt + path])).logits[0].log_softmax(-1)
        scores[item_id] = sum(
            logps[len(prompt) - 1 + place, token].item() for place, token in enumerate(path)
        )
    return sorted(scores, key=lambda item_id: -scores[item_id])


def test_flashrecs_own_code_reads_layout_and_catalogue_and_ranks_alike(write, recommender):
    """Its layout inference and its trie; scores from the exported weights by plain forwards. The
    package is asked for where it is installed: `pip install --no-deps flashrec==0.1.2`, since what
    it requires is for GPUs.
    """
    flashrec_trie = pytest.importorskip("flashrec.search.trie")
    flashrec_layout = pytest.importorskip("flashrec.sid_layout")

    folder, said = write("flashrec")
    assert "FlashRec 0.1.2 runs Qwen3; this is qwen2" in said
    layout = flashrec_layout.infer_sid_layout(str(folder), str(folder / "catalogue.json"))
    assert layout.codebook_sizes == "8,8"
    first, last = map(int, layout.token_range.split(":"))
    assert layout.boundary_tokens == f"{last + 1},{last + 2}"
    trie = flashrec_trie.build_trie_from_sid2vid_file(
        folder / "catalogue.json", token_base=first, codebook_sizes=[8, 8]
    )
    content = json.loads((folder / "catalogue.json").read_text())
    paths = {}
    for key, item_ids in content.items():
        a, b = map(int, key.split(","))
        path = [first + a, first + 8 + b]
        assert path[0] in trie.allowed_next([]) and path[1] in trie.allowed_next(path[:1])
        paths |= dict.fromkeys(item_ids, path)
    assert len(paths) == 24
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = prompt_of(recommender, ["i1", "i2"])
    text = recommender.policy.tokenizer.decode(prompt)
    for level in "ab":
        text = text.replace(f"<{level}_", f"<s_{level}_")
    assert tokenizer(text)["input_ids"] == prompt
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings > last + 2
    assert exhaustive(model, prompt, paths)[:12] == ranked(recommender, ["i1", "i2"], 12)


def test_nvidias_catalogue_has_a_line_per_item_and_ranks_alike(write, recommender):
    folder, _ = write("nvidia")
    lines = [json.loads(line) for line in (folder / "catalogue.jsonl").read_text().splitlines()]
    assert [line["item_id"] for line in lines] == [f"i{n}" for n in range(24)]
    assert lines[8]["metadata"] == {"title": "thing 2 of kind 1"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(lines[8]["token_ids"]) == ["<a_0>", "<b_1>"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    paths = {line["item_id"]: line["token_ids"] for line in lines}
    order = exhaustive(model, prompt_of(recommender, ["i4"]), paths)
    assert order[:12] == ranked(recommender, ["i4"], 12)


def test_plain_generate_with_the_exported_script_ranks_alike(write, recommender):
    folder, said = write("vllm")
    assert "of the legal tokens of its beams" in said
    spec = importlib.util.spec_from_file_location("exported", folder / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.generate(prompt_of(recommender, ["i1", "i5"]), num_beams=12)
    assert [item_id for item_id, _ in found] == ranked(recommender, ["i1", "i5"], 12)


def test_a_late_filter_loses_what_the_vocabulary_pushes_out_of_its_sight(recommender):
    """With a beam as wide as the vocabulary nothing is lost; with one of 2 most legal tokens are."""
    policy = recommender.policy
    prompts = [prompt_of(recommender, [f"i{n}"]) for n in (1, 9)]
    assert lost_tokens(policy, prompts, 10_000) == (0.0, 0.0)
    lost = lost_tokens(policy, prompts, 2)
    assert lost.tokens > 0.5 and 0.0 <= lost.items <= 1.0
    exact = constrained_beam_search(make_decoder(policy.model), prompts, policy.trie, 2)
    assert math.isfinite(float(exact.scores.min()))


def test_what_an_engine_cannot_say_is_refused(write, made, monkeypatch, tmp_path):  # noqa: F811
    for words, message in (
        (["--for", "flashrec"], "--run is missing; see --help"),
        (["--for", "trt", "--run", "x", "--out", "y"], "--for: got 'trt', expected one of flashrec, nvidia, vllm"),
        (["--for", "vllm", "--run", "x", "--out", str(tmp_path)], f"--out: {tmp_path} is there already; delete it, or name another folder"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["export", *words])
        with pytest.raises(UserError) as error:
            export.main()
        assert str(error.value) == message
