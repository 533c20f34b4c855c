"""New items for a catalogue that has SIDs: none of those moves, the new ones are free, and an old model reaches them.

python -m pytest tests/rqvae/test_add_items.py
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.encoder import save_encoder
from minionerec.catalogue.sids import load_sids
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.config import read_experiment
from minionerec.experiment.files import sha256_file
from minionerec.experiment.lineage import is_done
from minionerec.experiment.manifest import verify
from minionerec.experiment.stages import stage_path
from minionerec.model import backbone
from rqvae import add_items, build_sids, embed_items
from tests.rqvae.test_sids_stage import WORDS, world

POLICIES = ("nearest_free", "extra_level", "keep")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Per collision policy a folder with ``demo.yaml`` and finished ``data``, ``embeddings`` and
    ``sids``.
    """
    encoder = save_encoder(tmp_path_factory.mktemp("encoder"), WORDS)
    folders = {}
    for policy in POLICIES:
        folders[policy] = tmp_path_factory.mktemp(policy)
        sizes = [4, 4, 4]  # 64 SIDs for 40 items
        experiment = world(
            folders[policy], encoder=str(encoder), codebook_sizes=sizes, collision=policy
        )
        (folders[policy] / "demo.yaml").write_text(
            f"seed: 0\nsids: {{encoder: '{encoder}', codebook_sizes: {sizes}, kmeans_iterations: 10, collision: {policy}}}\n"
        )
        embed_items.main(experiment)
        build_sids.main(experiment)
    return folders


@pytest.fixture
def here(tmp_path, monkeypatch, bases):
    """Makes a copy of a base the working directory."""

    def copy(policy: str = "nearest_free") -> Path:
        shutil.copytree(bases[policy], tmp_path / "work")
        monkeypatch.chdir(tmp_path / "work")
        return tmp_path / "work"

    return copy


def extend(*words: str, items: list[dict] | None = None) -> None:
    """Run the script in the working directory, on these items or 10 that resemble old ones."""
    rows = items or [
        {
            "item_id": f"n{i}",
            "title": f"{WORDS[i]} {WORDS[i + 1]} {WORDS[i + 2]} pump 5{i}",
            "brand": "new",
        }
        for i in range(10)
    ]
    pd.DataFrame(rows).to_csv("new.csv", index=False)
    sys.argv = ["add_items.py", "--config", "demo.yaml", "--items", "new.csv", *words]
    add_items.main()


def sids_of(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/sids/sids.json").read_text())


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_no_sid_moves_and_every_new_one_is_free(here, policy, capsys):
    here(policy)
    before = files_of(Path("runs/demo"))
    extend()
    assert files_of(Path("runs/demo")) == before
    old, new = sids_of("demo"), sids_of("demo-extended")
    assert list(new["sids"].items())[:40] == list(old["sids"].items()) and list(new["sids"])[
        40:
    ] == [f"n{i}" for i in range(10)]
    assert new["codebook_sizes"] == old["codebook_sizes"]
    added, taken = (
        [tuple(new["sids"][f"n{i}"]) for i in range(10)],
        {tuple(sid) for sid in old["sids"].values()},
    )
    if policy != "keep":
        assert len(set(added)) == 10 and not taken & set(added)
        assert "churn 0 (SIDs that moved), items that share a SID now: 0" in capsys.readouterr().out
    load_sids(
        Path("runs/demo-extended/sids/sids.json")
    )  # among others: no SID is the beginning of another
    report = json.loads(Path("runs/demo-extended/sids/report.json").read_text())
    assert (report["added"], report["churn"], report["items"]) == (10, 0, 50)


def test_further_codes_are_given_to_groups_as_long_as_there_are_any():
    """(0, 0) is a group with codes 0 and 2; (1, 1) is a lone item; (2, 2) is nobody's; three
    further codes.
    """
    old = [(0, 0, 0), (0, 0, 2), (1, 1)]
    codes = [(0, 0), (1, 1), (2, 2), (0, 0), (2, 2), (3, 3), (2, 2), (2, 2)]
    assert add_items.further_codes(codes, old, num_levels=2, num_further=3) == {
        0: (0, 0, 1),
        2: (2, 2, 0),
        4: (2, 2, 1),
        6: (2, 2, 2),
    }
    assert add_items.further_codes(codes, [(1, 1)], num_levels=2, num_further=0) == {}


def test_the_extended_experiment_is_whole_and_says_what_it_was_made_from(here):
    here()
    extend()
    experiment = read_experiment("demo.yaml", {"name": "demo-extended"})
    assert is_done(experiment, "data") and is_done(experiment, "sids")
    manifest, folder = verify(stage_path(experiment, "sids")), stage_path(experiment, "sids")
    assert (
        set(manifest["parents"]) == {"../data", "../../demo/sids"}
        and manifest["made_by"] == "python rqvae/add_items.py"
    )
    assert manifest["sids_sha256"] == sha256_file(folder / "sids.json")
    rows = np.load(folder / "embeddings.npy")
    assert rows.shape == (50, 16) and (rows[:40] == np.load("runs/demo/sids/embeddings.npy")).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert sids_of("demo-extended")["embeddings_sha256"] == sha256_file(folder / "embeddings.npy")
    items = pd.read_parquet("runs/demo-extended/data/items.parquet")
    assert (
        items["item_id"].tolist() == json.loads((folder / "item_ids.json").read_text())
        and items["brand"].iloc[-1] == "new"
    )
    pd.testing.assert_frame_equal(
        pd.read_parquet("runs/demo-extended/data/interactions.parquet"),
        pd.read_parquet("runs/demo/data/interactions.parquet"),
        check_dtype=False,
    )
    assert sorted(
        path.name
        for path in Path("runs/demo-extended").iterdir()
        if not path.name.endswith(".lock")
    ) == ["data", "sids"]
    assert "<script>" not in (folder / "report.html").read_text()


def test_an_extension_is_made_once_and_can_be_extended_again(here, capsys):
    here()
    extend()
    extend()
    assert "is there already, with these 10 items" in capsys.readouterr().out
    extend(
        "--name", "demo-extended", "--to", "third", items=[{"item_id": "m1", "title": "red tape 1"}]
    )
    assert (
        len(sids_of("third")["sids"]) == 51
        and sids_of("third")["sids"]["n3"] == sids_of("demo-extended")["sids"]["n3"]
    )
    with pytest.raises(
        UserError,
        match="^runs/third/data: is there already, made from something else; delete runs/third, or give",
    ):
        extend("--to", "third")


def test_an_interrupted_extension_continues(here, monkeypatch):
    here()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            add_items, "write_sids", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        extend()
    assert Path("runs/demo-extended/data").is_dir() and not Path("runs/demo-extended/sids").exists()
    monkeypatch.setattr(
        embed_items, "encode_with", lambda _: lambda texts: pytest.fail("embedded again")
    )
    extend()
    assert len(sids_of("demo-extended")["sids"]) == 50


def test_a_listing_with_an_old_text_gets_its_vector_and_a_sid_beside_it(here):
    here()
    old = pd.read_parquet("runs/demo/data/items.parquet").iloc[7]
    extend(
        items=[
            {
                "item_id": "copy",
                "title": old["title"],
                "description": old["description"].replace("&amp;", "&"),
                "categories": list(old["categories"]),
            }
        ]
    )
    rows = np.load("runs/demo-extended/sids/embeddings.npy")
    assert (rows[40] == rows[7]).all()
    report = json.loads(Path("runs/demo-extended/sids/report.json").read_text())
    assert report["same_text_as_an_old_item"] == 1 and report["re_assigned"] == 1


@pytest.mark.parametrize(
    "items, message",
    [
        (
            [{"item_id": "i7", "title": "red"}],
            "new.csv:2: item_id: got 'i7', expected an id that is not in the catalogue yet",
        ),
        (
            [{"item_id": "a", "title": "red"}, {"item_id": "a", "title": "blue"}],
            "new.csv:3: item_id: got 'a', expected every id once",
        ),
        ([{"item_id": "a", "title": ""}], "new.csv:2: title: got '', expected a title"),
        ([{"item_id": "a", "name": "red"}], "new.csv: has no column 'title' for title"),
        (
            [{"item_id": f"n{i}", "title": f"red {i}"} for i in range(25)],
            "sids.codebook_sizes: [4, 4, 4] makes 64 SIDs for 65 items; add a level",
        ),
    ],
)
def test_a_mistake_in_the_new_items_is_one_line_and_nothing_is_written(here, items, message):
    here()
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        extend(items=items)
    assert len(str(caught.value).splitlines()) == 1
    assert (
        not Path("runs/demo-extended/data").exists()
        and not Path("runs/demo-extended/sids").exists()
    )


def test_flags_that_cannot_work_are_refused(here, monkeypatch):
    here()
    for words, message in (
        (("--items", "none.csv"), "--items: none.csv: no such file"),
        ((), "--items is missing; name a file"),
        (("--items", "demo.yaml", "--to", "demo"), "--to: got 'demo', expected another name"),
        (
            ("--items", "demo.yaml", "--to", "../x"),
            "--to: got '../x', expected letters, digits, '.', '_', '-', beginning with a letter or digit",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["add_items.py", "--config", "demo.yaml", *words])
        with pytest.raises(UserError, match="^" + re.escape(message)):
            add_items.main()


def test_other_settings_than_those_on_disk_are_refused(here):
    here()
    with pytest.raises(UserError, match=re.escape("sids.max_text_tokens: 256 -> 99")):
        extend("--sids.max_text_tokens", "99")


# --------------------------------------------------------------------------------------------------
# The old model


def checkpoint_of(name: str, folder: Path) -> Path:
    """What ``backbone.check_sids`` looks at in a checkpoint of this experiment."""
    folder.mkdir()
    shutil.copy(f"runs/{name}/sids/sids.json", folder / "sids.json")
    return folder


def test_a_checkpoint_accepts_further_items_but_no_moved_and_no_missing_ones(here):
    here()
    extend()
    old, new = (
        load_sids(Path(f"runs/{name}/sids/sids.json")) for name in ("demo", "demo-extended")
    )
    trained_on_old, trained_on_new = (
        checkpoint_of("demo", Path("old")),
        checkpoint_of("demo-extended", Path("new")),
    )
    backbone.check_sids(trained_on_old, old)
    backbone.check_sids(trained_on_old, new)
    with pytest.raises(
        UserError,
        match=r"^new: was trained on other SIDs than this experiment's \(item 'n0' has no SID, there \[",
    ):
        backbone.check_sids(trained_on_new, old)
    moved = sids_of("demo-extended")
    moved["sids"]["i3"], moved["sids"]["n0"] = moved["sids"]["n0"], moved["sids"]["i3"]
    Path("moved.json").write_text(json.dumps(moved))
    with pytest.raises(
        UserError, match=r"\(item 'i3' has \[.*\], there \[.*\]; 1 differences between"
    ):
        backbone.check_sids(trained_on_old, load_sids(Path("moved.json")))
    wider = sids_of("demo-extended") | {"codebook_sizes": [4, 4, 5]}
    Path("wider.json").write_text(json.dumps(wider))
    with pytest.raises(
        UserError, match=r"\(codebook sizes \[4, 4, 5\], there \[4, 4, 4\]; 1 differences"
    ):
        backbone.check_sids(trained_on_old, load_sids(Path("wider.json")))


@pytest.mark.parametrize("policy", POLICIES[:2])
def test_the_trie_reaches_the_new_items_and_still_all_old_ones(here, policy):
    here(policy)
    extend()
    old, new = (
        load_sids(Path(f"runs/{name}/sids/sids.json")) for name in ("demo", "demo-extended")
    )
    before, after = SidTrie(old.codes), SidTrie(new.codes)
    assert all(after.find(sid) is not None for sid in new.codes) and after.num_leaves == 50
    assert all(before.find(sid) is None for sid in new.codes[40:])


@pytest.mark.parametrize("again", [False, True])
def test_new_items_are_not_embedded_with_another_model_than_the_old_ones(
    here, tmp_path, monkeypatch, again
):
    """Also where the embeddings' own folder is gone, or never was, as in an extended experiment."""
    folder = here()
    encoder = tmp_path / "encoder"
    text = (folder / "demo.yaml").read_text()
    found = re.search("encoder: '(.*?)'", text)[1]
    shutil.copytree(found, encoder)
    file = folder / "demo.yaml"
    file.write_text(text.replace(found, str(encoder)))
    for stage in ("embeddings", "sids"):
        shutil.rmtree(folder / "runs/demo" / stage)
    experiment = read_experiment(file)
    embed_items.main(experiment)
    build_sids.main(experiment)

    def add(name: str, items: str, to: str) -> None:
        (folder / "new.csv").write_text(f"item_id,title\n{items},thing {items}\n")
        flags = ["--name", name, "--items", "new.csv", "--to", to]
        monkeypatch.setattr("sys.argv", ["add_items.py", "--config", "demo.yaml", *flags])
        add_items.main()

    name = "demo"
    if again:
        add("demo", "n1", "longer")
        name = "longer"
    shutil.rmtree(folder / "runs/demo/embeddings")
    (encoder / "README.md").write_text("retrained")
    with pytest.raises(UserError, match=rf"runs/{name}/sids: was made with another model than"):
        add(name, "n2", "longest")
