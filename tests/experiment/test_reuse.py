"""``--from`` and ``--redo``: what is shared, what is removed, and what stays.

python -m pytest tests/experiment/test_reuse.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from minionerec.errors import UserError
from minionerec.experiment import reuse
from minionerec.experiment.commit import committed
from minionerec.experiment.lineage import is_done, open_stage
from minionerec.experiment.manifest import opened
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import evaluation_path, settings_of, stage_path

PARENTS = {
    "data": (),
    "embeddings": ("data",),
    "sids": ("data", "embeddings"),
    "sft": ("data", "sids"),
    "rl": ("data", "sids", "sft"),
}


def make(
    experiment: Experiment, stage: str, parents: tuple[str, ...], path: Path | None = None
) -> Path:
    path = path or stage_path(experiment, stage)
    read = [opened(stage_path(experiment, name)) for name in parents]
    with committed(path, stage, settings_of(experiment, stage), read) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "content").write_text(f"{stage} of {experiment.name}")
    return path


@pytest.fixture
def first(tmp_path, monkeypatch) -> Experiment:
    """An experiment with five stages and the ranking of its SFT model; the working folder is its
    home.
    """
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(name="A", evaluate={"checkpoint": "sft"})
    for stage, parents in PARENTS.items():
        make(experiment, stage, parents)
    make(experiment, "evaluate", ("data", "sids", "sft"), evaluation_path(experiment))
    return experiment


def content(experiment: Experiment, stage: str) -> str:
    return (stage_path(experiment, stage) / "deep" / "content").read_text()


def test_stages_whose_settings_agree_are_shared_as_links_and_the_others_named(first, capsys):
    second = first.changed({"name": "B", "sft.epochs": 3})
    reuse.share(second, Path("runs/A"))
    assert capsys.readouterr().out == (
        "runs/B: shares data, embeddings, sids of runs/A; not shared: sft (sft.epochs: 10 -> 3), "
        "rl (its sft is not shared), evaluate/sft-test (its sft is not shared)\n"
    )
    assert is_done(second, "sids") and content(second, "sids") == "sids of A"
    ours = stage_path(second, "sids") / "deep" / "content"
    assert os.stat(ours).st_nlink == 2
    assert not stage_path(second, "sft").exists()


def test_a_stage_is_not_shared_beside_parents_of_ones_own(first, capsys):
    """B has made its data itself: to the letter the same settings, yet another directory."""
    second = first.changed({"name": "B"})
    with committed(stage_path(second, "data"), "data", settings_of(second, "data"), []) as staging:
        (staging / "content").write_text("other")
    reuse.share(second, Path("runs/A"))
    said = capsys.readouterr().out
    assert "shares nothing more of runs/A" in said
    assert "embeddings (its data is not shared)" in said
    assert not stage_path(second, "sids").exists()


def test_sharing_everything_shares_rankings_too_and_twice_is_once(first, capsys):
    second = first.changed({"name": "B"})
    reuse.share(second, Path("runs/A"))
    assert (
        "shares data, embeddings, sids, sft, rl, evaluate/sft-test of runs/A\n"
        in capsys.readouterr().out
    )
    assert is_done(second, "evaluate", evaluation_path(second))
    reuse.share(second, Path("runs/A"))
    assert capsys.readouterr().out == "runs/B: shares nothing more of runs/A\n"


@pytest.mark.parametrize(
    "source, message", [("runs/C", "no experiment's folder"), ("runs/A", "itself")]
)
def test_from_nowhere_or_from_itself_is_refused(first, source, message):
    with pytest.raises(UserError, match=f"^command line: --from: {source}.*{message}"):
        reuse.share(first, Path(source))


def test_redo_lists_first_and_removes_with_yes_what_was_made_from_the_stage(first, capsys):
    (Path("runs/A") / "sft.partial").mkdir()
    doomed = "runs/A/sft, runs/A/evaluate/sft-test, runs/A/rl, runs/A/sft.partial"
    expected = f"--redo sft would remove {doomed}; add --yes to remove them and go on"
    with pytest.raises(UserError, match="^" + re.escape(expected) + "$"):
        reuse.redo(first, "sft", yes=False)
    assert stage_path(first, "rl").exists()
    reuse.redo(first, "sft", yes=True)
    assert capsys.readouterr().out == f"--redo sft: removed {doomed}\n"
    left = sorted(path.name for path in Path("runs/A").iterdir() if path.name[0] != ".")
    assert left == ["data", "embeddings", "evaluate", "sids"]
    assert list(Path("runs/A/evaluate").glob("[!.]*")) == []


def test_redo_leaves_another_experiment_that_shares_the_files_alone(first):
    second = first.changed({"name": "B"})
    reuse.share(second, Path("runs/A"))
    reuse.redo(second, "data", yes=True)
    assert content(first, "rl") == "rl of A" and is_done(first, "rl")
    assert not stage_path(second, "data").exists()


def test_redo_of_what_is_not_there_removes_nothing(first, capsys):
    reuse.redo(first, "collaborative", yes=False)
    assert capsys.readouterr().out == "--redo collaborative: nothing of it is there yet\n"
    with pytest.raises(
        UserError, match=r"got 'stf', expected one of data, .*; did you mean 'sft'\?"
    ):
        reuse.redo(first, "stf", yes=True)


def advice(experiment: Experiment, stage: str, path: Path) -> str:
    """What is said to a stage that was made with other settings, after what has changed."""
    with pytest.raises(UserError) as caught:
        is_done(experiment, stage, path)
    return str(caught.value).partition("; restore them, or ")[2]


@pytest.mark.parametrize(
    "stage, folder, change",
    [
        ("audit", "audit", {"model.max_tokens": 99}),
        ("sids", "compare/rqvae", {"sids.codebook_sizes": [8, 8]}),
    ],
)
def test_what_redo_does_not_remove_is_to_be_deleted(first, stage, folder, change):
    """An audit has no such flag, and SIDs beside others are not those that ``--redo sids`` means."""
    path = stage_path(first, folder)
    with committed(path, stage, settings_of(first, stage), []):
        pass
    expected = f"delete {path} and run the same command again"
    assert advice(first.changed(change), stage, path) == expected


def test_a_longer_catalogue_made_with_other_settings_is_made_again_by_its_own_command(first):
    """Which has no ``--redo``."""
    longer = first.changed({"name": "B"})
    path, made_by = stage_path(longer, "data"), "python rqvae/add_items.py"
    with committed(path, "data", settings_of(longer, "data"), [], made_by=made_by):
        pass
    with pytest.raises(UserError) as caught:
        open_stage(longer.changed({"data.k_core": 3}), "data")
    assert str(caught.value).endswith(
        "; restore them, or run `python rqvae/add_items.py` with them and another --to NAME"
    )


@pytest.mark.parametrize("stage", ["sids", "gru4rec_folds", "collaborative"])
def test_redo_takes_every_stage_that_it_is_advised_for(first, capsys, stage):
    """Networks of a teacher too, which ``sft.sh`` trains on its way."""
    path = stage_path(first, stage)
    if not path.exists():
        with committed(path, stage, settings_of(first, stage), []):
            pass
    changed = first.changed({"baselines.epochs": 99, "sids.codebook_sizes": [8, 8]})
    assert advice(changed, stage, path).startswith(f"run again with --redo {stage} (")
    reuse.redo(changed, stage, yes=True)
    assert capsys.readouterr().out.startswith(f"--redo {stage}: removed {path}")


def test_the_flags_are_taken_out_of_the_words_of_the_command():
    words = ["sft", "--config", "C", "--redo", "sft", "--yes", "--from=runs/A", "--seed", "1"]
    rest, flags, yes = reuse.split_words(words)
    assert rest == ["sft", "--config", "C", "--seed", "1"]
    assert (flags, yes) == ({"redo": "sft", "from": "runs/A"}, True)
    with pytest.raises(UserError, match="--redo has no value"):
        reuse.split_words(["sft", "--redo", "--yes"])
    with pytest.raises(UserError, match="--yes belongs to --redo"):
        reuse.apply(Experiment(name="A"), {}, yes=True)
