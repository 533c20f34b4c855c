"""What stands for an item: its text, vectors of one's own, and whether an encoder can read it.

python -m pytest tests/rqvae/test_item_text.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.encoder import save_encoder
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.templates import TEMPLATES
from minionerec.errors import UserError
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from rqvae import build_sids, embed_items
from rqvae.embeddings import texts
from rqvae.embeddings.own import read_own_vectors
from tests.rqvae.test_sids_stage import WORDS, world
from tests.worlds import word_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder"), [*WORDS, "tools", ","]))


def rows_of(experiment: Experiment) -> np.ndarray:
    embed_items.main(experiment)
    return np.load(stage_path(experiment, "embeddings") / "embeddings.npy")


def test_the_parts_of_a_text_are_those_of_the_settings_in_their_order(tmp_path):
    items = pd.DataFrame(
        {
            "item_id": ["a", "b"],
            "title": ["Heat", "Toy &amp; Story"],
            "brand": ["Warner", ""],
            "categories": [["Crime", "Drama"], []],
            "description": ["", "for children"],
        }
    )
    items.to_parquet(tmp_path / "items.parquet")

    def read(*parts: str) -> list[str]:
        return [
            text for _, some in texts.read_items(tmp_path / "items.parquet", parts) for text in some
        ]

    everything = read("title", "brand", "categories", "description")
    assert everything == ["Heat Warner Crime, Drama", "Toy & Story for children"]
    assert read("categories", "title") == ["Crime, Drama Heat", "Toy & Story"]
    assert read("title", "description") == ["Heat", "Toy & Story for children"]


def test_categories_change_the_vectors_only_where_the_settings_name_them(tmp_path, encoder):
    """Item 5 of the world has no categories, every other one has."""
    folders = [tmp_path / "with", tmp_path / "without"]
    parts = [["title", "categories"], ["title"]]
    both = []
    for folder, text in zip(folders, parts, strict=True):
        both.append(rows_of(world(folder, encoder=encoder, text=text)))
    differ = np.abs(both[0] - both[1]).max(axis=1) > 1e-6
    assert not differ[5]
    assert differ.sum() == 39


def test_prompts_that_name_an_item_show_its_categories_if_the_text_has_them(tmp_path, encoder):
    """``sid_to_title`` and histories of SIDs stay as they are: a completion is the plain title."""
    experiment = world(tmp_path, encoder=encoder, text=["title", "categories", "description"])
    embed_items.main(experiment)
    build_sids.main(experiment)
    catalogue = Catalogue.open(experiment)
    tokens = [token for level in "abc" for token in (f"<{level}_{code}>" for code in range(6))]
    words = [*WORDS, "title:", "titles:", "item:", "tools,", ";"]
    tokenizer = word_tokenizer([*tokens, *words])
    renderer = catalogue.renderer(tokenizer, TEMPLATES["compact"], 100)
    title = catalogue.items["title"][0]
    assert renderer.text("title_to_sid", [0]) == f"title: {title} tools, {title.split()[0]} item:"
    assert renderer.text("titles_to_sid", [5, 5]).count("tools") == 0
    known = {tokenizer.convert_tokens_to_ids(word) for word in title.split()[:4]}
    assert known <= set(renderer.completion("sid_to_title", 0))
    assert tokenizer.convert_tokens_to_ids("tools,") not in renderer.completion("sid_to_title", 0)


# --------------------------------------------------------------------------------- own vectors


def save_parquet(path: Path, ids: list, rows: np.ndarray) -> None:
    pd.DataFrame({"item_id": ids, "vector": list(rows)}).to_parquet(path)


def save_columns(path: Path, ids: list, rows: np.ndarray) -> None:
    columns = {f"v{number}": rows[:, number] for number in range(rows.shape[1])}
    pd.DataFrame({"item_id": ids, **columns}).to_parquet(path)


def save_npy(path: Path, ids: list, rows: np.ndarray) -> None:
    np.save(path, rows)
    path.with_suffix(".json").write_text(json.dumps(ids))


@pytest.mark.parametrize(
    "name, save", [("v.parquet", save_parquet), ("v.parquet", save_columns), ("v.npy", save_npy)]
)
def test_own_vectors_are_found_by_id_whatever_their_order_and_kind_of_file(
    tmp_path, monkeypatch, name, save
):
    """Ids may be whole numbers; vectors of items that the catalogue lacks are left out."""
    monkeypatch.setattr("rqvae.embeddings.own.ROWS_AT_ONCE", 1)
    rows = np.array([[0.0, 5.0], [3.0, 4.0], [2.0, 0.0]])
    save(tmp_path / name, [30, 10, 20], rows)
    found = read_own_vectors(str(tmp_path / name), ["10", "20"])
    assert found.tolist() == [pytest.approx([0.6, 0.8]), [1.0, 0.0]]


@pytest.mark.parametrize(
    "ids, rows, message",
    [
        (
            ["a"],
            [[1.0]],
            "has no vector of item 'b' (1 of 2 items have none; its ids look like 'a')",
        ),
        (["a", "b", "a"], [[1.0], [1.0], [2.0]], "item 'a' is there twice; keep one row"),
        (["a", "b"], [[1.0], [0.0]], "the vector of item 'b' is 0 or not finite (1 such items)"),
        (["a", "b"], [[float("nan")], [1.0]], "the vector of item 'a' is 0 or not finite"),
    ],
)
def test_own_vectors_that_cannot_work_are_refused_in_one_line(tmp_path, ids, rows, message):
    file = tmp_path / "v.parquet"
    save_parquet(file, ids, np.array(rows))
    with pytest.raises(UserError, match=re.escape(f"sids.embeddings: {file}: {message}")):
        read_own_vectors(str(file), ["a", "b"])


def test_a_missing_file_and_another_kind_of_file_say_what_is_expected(tmp_path):
    (tmp_path / "v.csv").write_text("item_id,x\n1,2\n")
    for name, message in (("none.npy", "no such file"), ("v.csv", "unknown kind of file")):
        with pytest.raises(UserError, match=f"{message}; expected a .parquet file with item_id"):
            read_own_vectors(str(tmp_path / name), ["1"])


def test_own_vectors_replace_the_text_and_no_encoder_is_looked_for(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 7))
    file = tmp_path / "own.parquet"
    save_parquet(file, [f"i{n}" for n in range(40)], rows)
    experiment = world(tmp_path, encoder="nowhere", embeddings=str(file))
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows_of(experiment), expected, atol=1e-6)
    build_sids.main(experiment)
    save_parquet(file, [f"i{n}" for n in range(40)], rows[::-1])
    with pytest.raises(UserError, match=re.escape(f"{file} has changed since it was read; run")):
        embed_items.main(experiment)


def test_own_vectors_beside_the_text_weigh_what_the_settings_say(tmp_path, encoder):
    """Cosines of items are the weighted mean of those of their own vectors and of their texts."""
    own = np.random.default_rng(1).normal(size=(40, 5))
    file = tmp_path / "own.parquet"
    save_parquet(file, [f"i{n}" for n in range(40)], own)
    text = rows_of(world(tmp_path / "text", encoder=encoder))
    joined = rows_of(
        world(tmp_path / "both", encoder=encoder, embeddings=str(file), embeddings_weight=0.3)
    )
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    assert joined.shape == (40, 5 + text.shape[1])
    cosines = 0.3 * own @ own.T + 0.7 * text @ text.T
    np.testing.assert_allclose(joined @ joined.T, cosines, atol=1e-5)


# ------------------------------------------------------------------------------------ languages


def test_an_encoder_of_another_language_is_named_with_the_share_it_cannot_read(tmp_path, capsys):
    """An encoder that knows no colour: one word in four of every title, and nothing else."""
    colours, others = WORDS[:2], WORDS[2:]
    poor = save_encoder(tmp_path / "encoder", others)
    experiment = world(tmp_path, encoder=str(poor), text=["title"])
    items = pd.read_parquet(stage_path(experiment, "data") / "items.parquet")
    tokens = [word for title in items["title"] for word in title.split()]
    titles = items["title"].drop_duplicates()
    tokens = [word for title in titles for word in title.split()]
    share = sum(word in colours for word in tokens) / len(tokens)
    assert 0.05 < share < 1
    embed_items.main(experiment)
    line = capsys.readouterr().err
    assert (
        f"warning: {share:.0%} of the tokens of the item texts are unknown to sids.encoder" in line
    )
    assert "--sids.encoder sentence-transformers/paraphrase-multilingual" in line
    facts = json.loads((stage_path(experiment, "embeddings") / "embeddings.json").read_text())
    assert facts["unknown_tokens"] == pytest.approx(share, abs=1e-6)
    build_sids.main(experiment)
    page = (stage_path(experiment, "sids") / "report.html").read_text()
    assert "tokens unknown to the encoder" in page and f"{share:.1%}" in page


def test_an_encoder_that_knows_the_words_is_not_warned_about(tmp_path, encoder, capsys):
    embed_items.main(world(tmp_path, encoder=encoder, text=["title"]))
    assert "warning" not in capsys.readouterr().err
