"""Stage 1 end to end: text, embeddings, SIDs, report, files, mistakes.

python -m pytest tests/rqvae/test_sids_stage.py
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from minionerec.catalogue.item_text import item_texts
from minionerec.catalogue.sources import embedded
from minionerec.errors import UserError
from minionerec.evaluation.exposure import gini
from minionerec.experiment.commit import committed
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import opened, verify
from minionerec.experiment.settings import DataSettings, Experiment, SidSettings
from minionerec.experiment.stages import settings_of, stage_path
from rqvae import build_sids, embed_items
from rqvae.next_code import next_code
from rqvae.quantizers.rqkmeans import nearest, relative_error
from rqvae.report import (
    duplicate_listings,
    fan_out,
    level_usage,
    neighbour_rate,
    next_item_pairs,
    prefix_meaning,
    purity,
)
from rqvae.verdict import NEXT_CODE

WORDS = [
    "steel",
    "bolt",
    "nut",
    "red",
    "blue",
    "long",
    "short",
    "heavy",
    "pump",
    "valve",
    "filter",
    "glove",
    "tape",
    "drill",
]


def world(folder: Path, num_items: int = 40, seed: int = 0, **sids) -> Experiment:
    """An experiment with a committed data directory: two items are listed twice, one has no
    description.
    """
    # Only this source brings SIDs; the files are written by hand all the same
    given = sids.get("method") == "given"
    source = {"source": "minionerec", "path": str(folder)} if given else {}
    experiment = Experiment(
        data=DataSettings(**source),
        name="demo",
        output_dir=str(folder / "runs"),
        seed=seed,
        sids=SidSettings(**{"codebook_sizes": [6, 6, 6], "kmeans_iterations": 10, **sids}),
    )
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(WORDS, 4)) + f" {i}" for i in range(num_items)]
    titles[-1], titles[-2] = titles[0], titles[1]
    items = pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(num_items)],
            "title": titles,
            "description": [
                "" if i == 3 else f"for {title} &amp; more" for i, title in enumerate(titles)
            ],
            "brand": "",
            "categories": [
                [] if i == 5 else ["tools", title.split()[0]] for i, title in enumerate(titles)
            ],
        }
    )
    interactions = pd.DataFrame(
        [
            {
                "user_id": f"u{user}",
                "item_id": f"i{rng.integers(num_items)}",
                "timestamp": 100 * user + step,
                "rating": float("nan"),
                "split": ("train", "train", "train", "valid", "test")[step],
            }
            for user in range(20)
            for step in range(5)
        ]
    )
    data = stage_path(experiment, "data")
    with committed(data, "data", settings_of(experiment, "data"), []) as staging:
        items.to_parquet(staging / "items.parquet")
        interactions.to_parquet(staging / "interactions.parquet")
        write_json(staging / "stats.json", {})
    return experiment


def embed_by_hand(
    experiment: Experiment, embeddings: np.ndarray | None = None, item_ids: list[str] | None = None
) -> np.ndarray:
    """A committed embeddings directory without an encoder: words as random directions, so equal
    texts are equal rows.
    """
    data = stage_path(experiment, "data")
    items = pd.read_parquet(data / "items.parquet")
    if embeddings is None:
        directions = np.random.default_rng(1).normal(size=(len(WORDS), 8))
        rows = [
            sum(directions[WORDS.index(word)] for word in title.split()[:4])
            for title in items["title"]
        ]
        embeddings = (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
            np.float32
        )
    final, settings = (
        stage_path(experiment, "embeddings"),
        settings_of(experiment, "embeddings"),
    )
    with committed(final, "embeddings", settings, [opened(data)]) as staging:
        np.save(staging / "embeddings.npy", embeddings)
        write_json(
            staging / "item_ids.json", items["item_id"].tolist() if item_ids is None else item_ids
        )
        write_json(staging / "embeddings.json", {})
    return embeddings


def read_sids(experiment: Experiment) -> dict:
    return json.loads((stage_path(experiment, "sids") / "sids.json").read_text())


def changed(experiment: Experiment, **sids) -> Experiment:
    return experiment.changed({f"sids.{key}": value for key, value in sids.items()})


# --------------------------------------------------------------------------------------------------
# The stage


@pytest.mark.parametrize("method", ["rqkmeans", "balanced_rqkmeans", "rqvae", "random"])
def test_every_method_gives_every_item_a_sid_of_its_own(tmp_path, method):
    experiment = world(
        tmp_path, method=method, hidden_sizes=[8], latent_size=4, epochs=5, batch_size=16
    )
    embeddings = embed_by_hand(experiment)
    build_sids.main(experiment)
    folder, stored = stage_path(experiment, "sids"), read_sids(experiment)
    manifest = verify(folder)
    assert len({tuple(sid) for sid in stored["sids"].values()}) == len(stored["sids"]) == 40
    assert all(0 <= code < 6 for sid in stored["sids"].values() for code in sid) and stored[
        "codebook_sizes"
    ] == [6, 6, 6]
    assert stored["method"] == method
    assert (
        manifest["sids_sha256"] == hashlib.sha256((folder / "sids.json").read_bytes()).hexdigest()
    )
    assert (
        stored["embeddings_sha256"]
        == hashlib.sha256((folder / "embeddings.npy").read_bytes()).hexdigest()
    )
    assert np.load(folder / "embeddings.npy").tolist() == embeddings.tolist()
    assert list(stored["sids"]) == json.loads((folder / "item_ids.json").read_text())
    assert {Path(parent).name for parent in manifest["parents"]} == {"data", "embeddings"}
    weights = load_file(folder / "quantizer.safetensors")
    assert [len(tensor) for name, tensor in weights.items() if name.startswith("codebook.")] == [
        6,
        6,
        6,
    ]
    assert "<svg" in (folder / "report.html").read_text()
    assert not list(folder.parent.glob(".sids.*progress*"))


@pytest.mark.parametrize("method", ["rqkmeans", "rqvae"])
def test_sizes_of_zero_come_from_the_number_of_items(tmp_path, method):
    """A sixteenth of 40 is nearest to 2, but 8 is the first power of two with 160 SIDs and more."""
    experiment = world(
        tmp_path,
        method=method,
        codebook_sizes=[0, 0, 0],
        hidden_sizes=[8],
        latent_size=4,
        epochs=1,
        batch_size=16,
    )
    embed_by_hand(experiment)
    build_sids.main(experiment)
    assert read_sids(experiment)["codebook_sizes"] == [8, 8, 8]
    weights = load_file(stage_path(experiment, "sids") / "quantizer.safetensors")
    assert [len(weights[f"codebook.{level}"]) for level in range(3)] == [8, 8, 8]


def test_stored_codebooks_give_the_codes_before_collisions(tmp_path):
    experiment = world(tmp_path, collision="keep")
    residual = embed_by_hand(experiment).copy()
    build_sids.main(experiment)
    weights, codes = load_file(stage_path(experiment, "sids") / "quantizer.safetensors"), []
    for level in range(3):
        codes.append(nearest(residual, weights[f"codebook.{level}"]))
        residual -= weights[f"codebook.{level}"][codes[-1]]
    assert np.stack(codes, 1).tolist() == list(read_sids(experiment)["sids"].values())
    report = json.loads((stage_path(experiment, "sids") / "report.json").read_text())
    embeddings = np.load(stage_path(experiment, "sids") / "embeddings.npy")
    assert report["reconstruction_error"][2] == pytest.approx(
        relative_error(embeddings, residual), abs=1e-6
    )


def test_a_further_level_keeps_the_shorter_sids(tmp_path):
    experiment = world(tmp_path, collision="extra_level", codebook_sizes=[4, 3])
    embed_by_hand(experiment)
    build_sids.main(experiment)
    stored = read_sids(experiment)
    lengths = {len(sid) for sid in stored["sids"].values()}
    assert lengths <= {2, 3} and 3 in lengths and len(stored["codebook_sizes"]) == 3
    sids = set(map(tuple, stored["sids"].values()))
    assert len(sids) == 40 and not any(sid[:2] in sids for sid in sids if len(sid) == 3)


def test_running_twice_says_so_and_other_settings_are_refused(tmp_path, capsys):
    experiment = world(tmp_path)
    embed_by_hand(experiment)
    build_sids.main(experiment)
    before = verify(stage_path(experiment, "sids"))
    capsys.readouterr()
    build_sids.main(experiment)
    assert (
        "is finished; next: bash sft.sh" in capsys.readouterr().out
        and verify(stage_path(experiment, "sids")) == before
    )
    with pytest.raises(UserError, match=re.escape("sids.codebook_sizes: [6, 6, 6] -> [7, 6, 6]")):
        build_sids.main(changed(experiment, codebook_sizes=[7, 6, 6]))


def test_two_runs_write_the_same_sids(tmp_path):
    digests = []
    for turn in ("one", "two"):
        experiment = world(tmp_path / turn)
        embed_by_hand(experiment)
        build_sids.main(experiment)
        digests.append(verify(stage_path(experiment, "sids"))["sids_sha256"])
    assert digests[0] == digests[1]


def test_given_sids_are_kept_and_only_collisions_are_resolved(tmp_path, capsys):
    experiment = world(tmp_path, method="given", codebook_sizes=[9, 9, 9])
    codes = {
        f"i{i}": [i % 5, i % 3, i % 2] for i in range(40)
    }  # 30 tuples, items 30..39 repeat 0..9
    (stage_path(experiment, "data") / "given_sids.json").write_text(json.dumps(codes))
    embed_by_hand(experiment)
    build_sids.main(experiment)
    stored = read_sids(experiment)
    assert stored["codebook_sizes"] == [9, 9, 9]
    assert len(set(map(tuple, stored["sids"].values()))) == 40
    same = sum(stored["sids"][item] == sid for item, sid in codes.items())
    assert same == 30 and all(stored["sids"][f"i{i}"] == codes[f"i{i}"] for i in range(10, 30))
    assert all(stored["sids"][item][:2] == sid[:2] for item, sid in codes.items())


def test_given_sids_can_be_kept_as_they_are_and_bring_their_own_sizes(tmp_path, capsys):
    experiment = world(tmp_path, method="given", codebook_sizes=[4, 4, 4], collision="keep")
    codes = {f"i{i}": [i % 5, i % 3] for i in range(40)}
    (stage_path(experiment, "data") / "given_sids.json").write_text(json.dumps(codes))
    embed_by_hand(experiment)
    build_sids.main(experiment)
    assert read_sids(experiment)["sids"] == codes and read_sids(experiment)["codebook_sizes"] == [
        5,
        3,
    ]
    assert (
        "sids.codebook_sizes [4, 4, 4] does not fit the given SIDs; their own sizes [5, 3] are used"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda codes: codes.pop("i7"), "item 'i7' has no codes (1 items have none)"),
        (
            lambda codes: codes.update(i7=[1]),
            "item 'i7' has codes [1], expected 2 whole numbers from 0",
        ),
        (
            lambda codes: codes.update(i7=[1, -1]),
            "item 'i7' has codes [1, -1], expected 2 whole numbers from 0",
        ),
        (
            lambda codes: codes.update(i7=[1, "<b_3>"]),
            "item 'i7' has codes [1, '<b_3>'], expected 2 whole numbers from 0",
        ),
        (
            lambda codes: codes.update(i7=[1, True]),
            "item 'i7' has codes [1, True], expected 2 whole numbers from 0",
        ),
    ],
)
def test_given_sids_with_a_mistake_name_the_item(tmp_path, change, message):
    experiment = world(tmp_path, method="given")
    codes = {f"i{i}": [i % 5, i % 3] for i in range(40)}
    change(codes)
    path = stage_path(experiment, "data") / "given_sids.json"
    path.write_text(json.dumps(codes))
    embed_by_hand(experiment)
    with pytest.raises(UserError, match="^" + re.escape(f"{path}: {message}")):
        build_sids.main(experiment)
    assert not stage_path(experiment, "sids").exists()


def test_given_without_a_file_says_what_to_do(tmp_path):
    experiment = world(tmp_path, method="given")
    embed_by_hand(experiment)
    with pytest.raises(UserError, match="given_sids.json: not found, but sids.method is given"):
        build_sids.main(experiment)


def test_embeddings_of_other_items_are_refused(tmp_path):
    experiment = world(tmp_path)
    embed_by_hand(experiment, item_ids=[f"i{i}" for i in (1, 0, *range(2, 40))])
    with pytest.raises(
        UserError, match=re.escape("item_ids.json, row 0: 'i1', expected 'i0' as in items.parquet")
    ):
        build_sids.main(experiment)
    other = world(tmp_path / "other")
    embed_by_hand(other, item_ids=[f"i{i}" for i in range(39)])
    with pytest.raises(
        UserError,
        match=re.escape(
            "row 39: 'nothing', expected 'i39' as in items.parquet (39 ids for 40 items)"
        ),
    ):
        build_sids.main(other)


def test_embeddings_are_mapped_not_loaded(tmp_path):
    rows = np.random.default_rng(0).normal(size=(1000, 128)).astype(np.float32)
    np.save(tmp_path / "embeddings.npy", rows)
    ids = [str(row) for row in range(1000)]
    write_json(tmp_path / "item_ids.json", ids)
    tracemalloc.start()
    found = build_sids.read_embeddings(tmp_path, ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, rows)
    assert peak < rows.nbytes / 2


@pytest.mark.parametrize("value, said", [(np.nan, "NaN or infinite values"), (0, "only zeros")])
def test_a_bad_embedding_stops_the_stage_before_anything_is_written(tmp_path, value, said):
    experiment = world(tmp_path)
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    rows[17] = value
    embed_by_hand(experiment, rows)
    with pytest.raises(UserError, match=f"embeddings.npy, row 17, item 'i17': {said}"):
        build_sids.main(experiment)
    assert not stage_path(experiment, "sids").exists()


def test_more_items_than_sids_is_refused(tmp_path):
    experiment = world(tmp_path, codebook_sizes=[3, 3, 3])
    embed_by_hand(experiment)
    with pytest.raises(
        UserError,
        match=re.escape("sids.codebook_sizes: [3, 3, 3] makes 27 SIDs for 40 items; add a level"),
    ):
        build_sids.main(experiment)


def run_script(
    script: str, *arguments: str, folder: Path, root: Path
) -> subprocess.CompletedProcess:
    """Run a script as a user does, from another directory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(root / script), *arguments],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )


def test_the_script_runs_from_anywhere_and_prints_table_place_and_next_command(tmp_path, root):
    experiment = world(tmp_path)
    embed_by_hand(experiment)
    (tmp_path / "demo.yaml").write_text(
        "seed: 0\nsids:\n  codebook_sizes: [6, 6, 6]\n  kmeans_iterations: 10\n"
    )
    done = run_script("rqvae/build_sids.py", "--config", "demo.yaml", folder=tmp_path, root=root)
    assert done.returncode == 0, done.stderr
    assert (
        "collision rate" in done.stdout
        and "written to runs/demo/sids; next: bash sft.sh" in done.stdout
        and "bash sft.sh" in done.stdout
    )


@pytest.mark.parametrize("script", ["rqvae/embed_items.py", "rqvae/build_sids.py"])
def test_an_unknown_flag_exits_with_one_line(tmp_path, root, script):
    (tmp_path / "demo.yaml").write_text("seed: 0\n")
    done = run_script(script, "--config", "demo.yaml", "--fast", "1", folder=tmp_path, root=root)
    assert (done.returncode, done.stderr.splitlines()) == (2, ["command line: --fast: unknown key"])


@pytest.mark.parametrize("stage", [embed_items, build_sids])
def test_a_missing_stage_names_the_command_that_makes_it(tmp_path, stage):
    experiment = Experiment(name="demo", output_dir=str(tmp_path))
    with pytest.raises(
        UserError,
        match=re.escape("data not found; run `bash data/prepare.sh` with the same --config first"),
    ):
        stage.main(experiment)
    assert not (tmp_path / "demo" / "sids").exists()


# --------------------------------------------------------------------------------------------------
# Report


def test_usage_of_a_level_by_hand():
    # counts 2 1 1 0: entropy 1.5 bits, so 2^1.5 codes; Gini: sorted 0 1 1 2, (-3*0 - 1 + 1 + 3*2) /
    # (4 * 4)
    usage = level_usage(np.array([0, 0, 1, 2, -1]), 4)
    assert usage == {
        "size": 4,
        "used": 3,
        "dead": 1,
        "perplexity": round(2**1.5, 3),
        "gini": 0.375,
        "largest": 2,
    }


def test_gini_is_half_the_relative_mean_difference():
    counts = np.random.default_rng(0).integers(0, 50, 30)
    differences = np.abs(counts[:, None] - counts[None]).mean()
    assert gini(counts) == pytest.approx(differences / (2 * counts.mean()))


def test_neighbours_are_consecutive_different_items_of_one_user():
    pairs = next_item_pairs([[1, 1, 2], [], [5, 6], [9]])
    assert pairs.tolist() == [[1, 2], [5, 6]]
    groups = np.zeros(10, int)
    groups[6] = 1
    assert neighbour_rate(groups, pairs) == 0.5
    assert neighbour_rate(groups, pairs[:0]) is None and purity(groups[:0], groups[:0]) is None


def test_prefixes_that_follow_categories_are_pure_and_dealt_ones_are_not():
    items = pd.DataFrame({"categories": [["all", "ab"[i // 50]] for i in range(100)]})
    codes = np.stack([np.arange(100) // 50, np.arange(100) % 50], axis=1)
    pairs = np.array([[i, (i + 1) % 50 + i // 50 * 50] for i in range(100)])
    first, second = prefix_meaning(codes, items, pairs, seed=0)
    assert (first["category_purity"], first["neighbour_rate"]) == (1.0, 1.0)
    assert first["category_purity_control"] < 0.65 and first["neighbour_rate_control"] < 0.65
    assert (second["prefixes"], second["neighbour_rate"]) == (100, 0.0)


def test_a_first_code_may_tell_the_next_one_without_being_it():
    """Complements: from items of code k people go to some item of code k + 1, never to one of k."""
    rng = np.random.default_rng(0)
    codes = np.arange(80) // 10  # 8 codes
    first = rng.integers(0, 80, 4000)
    second = (codes[first] + 1) % 8 * 10 + rng.integers(0, 10, 4000)
    pairs = np.stack([first, second], axis=1)
    assert neighbour_rate(codes, pairs) == 0
    told = next_code(codes, pairs, seed=0)
    assert told["bits"] == pytest.approx(3, abs=0.02)  # which of 8 codes: log2(8)
    assert told["control"] < 0.2 and told["chance"] < 0.01


def test_a_first_code_that_means_nothing_tells_no_more_than_one_dealt_at_random():
    rng = np.random.default_rng(1)
    first = rng.integers(0, 80, 4000)
    pairs = np.stack([first, (first + rng.integers(1, 4, 4000)) % 80], axis=1)
    meaningless = next_code(rng.permutation(80) % 8, pairs, seed=0)
    assert meaningless["bits"] == pytest.approx(meaningless["control"], rel=0.4)
    assert next_code(np.arange(80) // 10, pairs, seed=0)["bits"] > 5 * meaningless["control"]


def test_the_embedded_catalogue_is_one_of_complements():
    """Its categories tell the next one and are hardly ever the next one: the quickstart is a go."""
    source = embedded.load(seed=42)
    category = pd.factorize(source.items["categories"].map(tuple))[0]
    row_of = pd.Series(range(len(source.items)), index=source.items["item_id"])
    rows = row_of.loc[source.interactions["item_id"]]
    of_user = rows.groupby(source.interactions["user_id"].to_numpy(), sort=False)
    pairs = next_item_pairs(of_user.agg(list).tolist())
    told = next_code(category, pairs, seed=0)
    assert told["bits"] > NEXT_CODE[0] * told["control"]
    assert neighbour_rate(category, pairs) < 1.5 / (category.max() + 1)


def test_independent_codes_tell_nothing_however_few_their_pairs():
    """Counted as they are, 300 pairs of 32 codes seem to tell two bits."""
    rng = np.random.default_rng(2)
    codes, pairs = np.arange(320) % 32, rng.integers(0, 320, (300, 2))
    told = next_code(codes, pairs, seed=0)
    assert abs(told["bits"]) < 0.1 and told["chance"] > 0
    assert next_code(codes, pairs[:0], seed=0) is None


def test_listings_are_identical_if_the_text_that_is_embedded_is():
    """Two films of one title are two where their genres are read."""
    items = pd.DataFrame(
        {
            "item_id": ["1", "2", "3"],
            "title": ["Titanic", "Titanic", "Heat"],
            "categories": [["Drama"], ["Action"], ["Drama"]],
        }
    )
    for text, expected in ((["title"], 2), (["title", "categories"], 0)):
        found = duplicate_listings(items, item_texts(items, text), [(0,), (1,), (2,)])
        assert found["items"] == expected


def test_fan_out_of_a_small_trie():
    rows = fan_out(np.array([[0, 0, -1], [0, 1, 0], [0, 1, 1], [2, 0, -1]]))
    assert [(row["nodes"], row["mean"], row["max"]) for row in rows] == [
        (1, 2.0, 2),
        (2, 1.5, 2),
        (1, 2.0, 2),
    ]


def test_the_report_counts_collisions_by_items_and_by_interactions(tmp_path):
    experiment = world(tmp_path, method="given", collision="keep")
    # i0, i1 and i2 share one SID, everything else is alone.
    codes = {f"i{i}": [0, 0] if i < 3 else [1 + i // 10, i % 10] for i in range(40)}
    (stage_path(experiment, "data") / "given_sids.json").write_text(json.dumps(codes))
    embed_by_hand(experiment)
    build_sids.main(experiment)
    report = json.loads((stage_path(experiment, "sids") / "report.json").read_text())
    interactions = pd.read_parquet(stage_path(experiment, "data") / "interactions.parquet")
    rows = interactions[interactions["split"] == "train"]
    assert report["collisions"]["after"] == {
        "collision_rate": 3 / 40,
        "distinct_sids": 38,
        "largest_group": 3,
        "collision_rate_by_interactions": round(
            float(rows["item_id"].isin(["i0", "i1", "i2"]).mean()), 6
        ),
    }
    assert report["duplicate_listings"]["groups"] == 2
    assert [group["item_ids"] for group in report["duplicate_listings"]["first"]] == [
        ["i0", "i39"],
        ["i1", "i38"],
    ]
    largest = report["largest_prefixes"][0]
    assert largest["items"] == 10 and len(largest["titles"]) == 3
    assert report["prefixes"][0]["items_with_category"] == 39
