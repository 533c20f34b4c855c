"""A real checkpoint: every flipped bit is found, and it is never used with other SIDs, another tokenizer or other data.

bash test.sh tests/reliability/test_lineage.py
bash test.sh tests/reliability/test_lineage.py -m slow        1,000 flips and 200 cuts
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import minionerec_trainer
import rl
import sft
from minionerec.errors import UserError
from minionerec.experiment.commit import commit
from minionerec.experiment.files import sha256_file, write_json
from minionerec.experiment.lineage import is_done
from minionerec.experiment.manifest import MANIFEST, opened, read_manifest, verify
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import evaluation_path, partial_path, settings_of, stage_path
from minionerec.training.checkpoints import last_checkpoint
from tests.worlds import tiny_run

SFT = {"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 32, "eval_rows": 10}
RL = {
    "num_generations": 4,
    "batch_size": 16,
    "epochs": 0.3,
    "evals": 1,
    "eval_rows": 10,
    "beta": 0.1,
    "sync_ref_steps": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with data, SIDs, SFT and RL, and the last checkpoint of RL's training beside them as
    ``checkpoint``.
    """
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    experiment, original = (
        tiny_run(folder, sft=SFT, rl=RL),
        minionerec_trainer.RankingTrainer.save_checkpoint,
    )

    def save(self, *args):
        original(self, *args)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        shutil.copytree(last_checkpoint(Path(self.args.output_dir)), folder / "checkpoint")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minionerec_trainer.RankingTrainer, "save_checkpoint", save)
        for stage in (sft, rl):
            run_stage(stage.__name__, stage.train, experiment)
    return folder


def world(made: Path, folder: Path, **sections) -> Experiment:
    """A copy of what is made."""
    shutil.copytree(made / "tiny", folder / "tiny", ignore=shutil.ignore_patterns(".*"))
    return tiny_run(folder, **{"sft": SFT, "rl": RL, **sections})


def refused(work) -> str:
    """The one line that work is refused with."""
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------- corruption


@pytest.mark.parametrize(
    "flips, cuts", [(100, 30), pytest.param(1000, 200, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["tiny/sft", "checkpoint"])
def test_every_flip_and_every_cut_of_a_real_checkpoint_is_refused_and_the_file_named(
    made, tmp_path, name, flips, cuts
):
    """Of what SFT hands on, and of the state that RL continues from: weights, reference, optimiser,
    tokenizer, pictures.
    """
    path = tmp_path / "copy"
    shutil.copytree(made / name, path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size]
    assert {"model.safetensors", "tokenizer.json", "sids.json", MANIFEST} <= {
        file.name for file in files
    }
    rng, hit = random.Random(flips), set()
    for number in range(flips + cuts):
        file = rng.choice(files)
        intact = file.read_bytes()
        if number < flips:
            place = rng.randrange(len(intact))
            file.write_bytes(
                intact[:place]
                + bytes([intact[place] ^ 1 << rng.randrange(8)])
                + intact[place + 1 :]
            )
        else:
            file.write_bytes(intact[: rng.randrange(len(intact))])
        assert refused(lambda: verify(path)).startswith(f"{file}: is damaged")
        file.write_bytes(intact)
        hit.add(file)
    assert len(hit) == len(files)
    verify(path)


# ----------------------------------------------------------------------------------- wrong pairings


def remake(experiment: Experiment, stage: str, parents: tuple[str, ...], change) -> None:
    """Make a stage again from a copy of its files that ``change`` has worked on."""
    path = stage_path(experiment, stage)
    shutil.copytree(path, path.with_name("work"), ignore=shutil.ignore_patterns(MANIFEST))
    shutil.rmtree(path)
    change(path.with_name("work"))
    commit(
        path.with_name("work"),
        path,
        stage,
        settings_of(experiment, stage),
        [opened(stage_path(experiment, parent)) for parent in parents],
    )


def other_sids(folder: Path) -> None:
    """The first two items change their codes; names and numbers of tokens stay the same."""
    content = json.loads((folder / "sids.json").read_text())
    content["sids"]["i0"], content["sids"]["i1"] = content["sids"]["i1"], content["sids"]["i0"]
    write_json(folder / "sids.json", content)


def larger_codebooks(folder: Path) -> None:
    content = json.loads((folder / "sids.json").read_text())
    write_json(folder / "sids.json", content | {"codebook_sizes": [8, 9]})


def other_data(folder: Path) -> None:
    (folder / "stats.json").write_text("{}")


def digest(path: Path) -> str:
    return read_manifest(path)["manifest_sha256"][:12]


@pytest.mark.parametrize(
    "stage, parents, change",
    [
        ("data", (), other_data),
        ("sids", ("data",), other_sids),
        ("sids", ("data",), larger_codebooks),
    ],
)
def test_a_model_is_not_used_with_data_or_sids_that_were_made_again(
    made, tmp_path, stage, parents, change
):
    """By RL, which reads SFT's model, and by an evaluation; both digests and both paths are named."""
    experiment = world(made, tmp_path, evaluate={"checkpoint": "sft", "num_beams": 10})
    before = digest(stage_path(experiment, stage))
    remake(experiment, stage, parents, change)
    if stage == "data":
        remake(experiment, "sids", ("data",), lambda folder: None)
    shutil.rmtree(stage_path(experiment, "rl"))
    for work in (
        lambda: rl.train(experiment, stage_path(experiment, "rl")),
        lambda: evaluate.evaluate(experiment, evaluation_path(experiment)),
    ):
        said, parent = refused(work), stage_path(experiment, stage)
        assert said == (
            f"{stage_path(experiment, 'sft')}: was made from another {parent} (manifest {before}, now {digest(parent)}); "
            f"delete {stage_path(experiment, 'sft')} and run `bash sft.sh` again"
        )


def foreign(made: Path, folder: Path, change=lambda folder: None) -> Path:
    """The SFT checkpoint as a folder without a manifest, whose files ``change`` works on."""
    shutil.copytree(made / "tiny/sft", folder / "foreign", ignore=shutil.ignore_patterns(MANIFEST))
    change(folder / "foreign")
    return folder / "foreign"


@pytest.mark.parametrize(
    "change, difference",
    [
        (other_sids, "item 'i0' has [0, 0], there [1, 0]; 2 differences"),
        (larger_codebooks, "codebook sizes [8, 8], there [8, 9]; 1 differences"),
    ],
)
def test_a_checkpoint_of_other_sids_is_refused_with_paths_and_digests_of_both(
    made, tmp_path, change, difference
):
    """A folder of one's own, whose tokenizer knows every SID token: nothing but the SIDs tells that
    they mean other items.
    """
    checkpoint = foreign(made, tmp_path, change)
    experiment = world(made, tmp_path, evaluate={"checkpoint": str(checkpoint), "num_beams": 10})
    theirs, ours = checkpoint / "sids.json", stage_path(experiment, "sids") / "sids.json"
    assert refused(lambda: evaluate.evaluate(experiment, tmp_path / "results")) == (
        f"{checkpoint}: was trained on other SIDs than this experiment's ({difference} between {theirs}, sha256 "
        f"{sha256_file(theirs)[:12]}, and {ours}, sha256 {sha256_file(ours)[:12]}); use the checkpoint that was "
        "trained on them, or train again"
    )


def tokenizer_of_another_catalogue(folder: Path) -> None:
    """As if its SIDs had two further codes: every token that is asked for is there, but the model
    has no rows for all.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<b_8>", "<b_9>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


def tokenizer_without_sids(folder: Path) -> None:
    from minionerec.model.vocabulary import train_tokenizer

    train_tokenizer(["a lamp", "a saw"], 300).save_pretrained(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (tokenizer_of_another_catalogue, ("its tokenizer has", "tokens, its model only")),
        (
            tokenizer_without_sids,
            ("the tokenizer lacks 16 SID tokens (<a_0>, ...)", "was trained on other SIDs than"),
        ),
    ],
)
def test_a_checkpoint_with_another_tokenizer_is_refused(made, tmp_path, change, words):
    checkpoint = foreign(made, tmp_path, change)
    experiment = world(made, tmp_path, evaluate={"checkpoint": str(checkpoint), "num_beams": 10})
    said = refused(lambda: evaluate.evaluate(experiment, tmp_path / "results"))
    assert all(word in said for word in words), said


def test_a_committed_checkpoint_with_a_swapped_tokenizer_is_refused(made, tmp_path):
    experiment = world(made, tmp_path)
    shutil.rmtree(stage_path(experiment, "rl"))
    file = stage_path(experiment, "sft") / "tokenizer.json"
    file.write_text(file.read_text().replace("thing", "gniht"))
    assert refused(lambda: rl.train(experiment, stage_path(experiment, "rl"))).startswith(
        f"{file}: is damaged"
    )


def test_an_interrupted_run_is_not_continued_with_another_model_below(made, tmp_path):
    """RL stopped halfway; SFT was made again; RL's checkpoint belongs to the old one."""
    experiment = world(made, tmp_path)
    shutil.rmtree(stage_path(experiment, "rl"))
    partial = partial_path(experiment, "rl")
    partial.mkdir()
    step = json.loads((made / "checkpoint/trainer_state.json").read_text())["global_step"]
    shutil.copytree(made / "checkpoint", partial / f"checkpoint-{step}")
    before = digest(stage_path(experiment, "sft"))
    remake(experiment, "sft", ("data", "sids"), lambda folder: os.truncate(folder / "log.jsonl", 0))
    said = refused(lambda: rl.train(experiment, stage_path(experiment, "rl")))
    parent = stage_path(experiment, "sft")
    assert said.startswith(
        f"{partial}/checkpoint-{step}: was made from another {parent} (manifest {before}, now {digest(parent)}); delete"
    )


def test_results_of_another_checkpoint_are_not_taken_for_this_ones(made, tmp_path):
    experiment = world(
        made, tmp_path, evaluate={"checkpoint": "rl", "num_beams": 10, "bootstrap_samples": 0}
    )
    path = evaluation_path(experiment)
    evaluate.evaluate(experiment, path)
    assert is_done(experiment, "evaluate", path)
    remake(
        experiment,
        "rl",
        ("data", "sids", "sft"),
        lambda folder: os.truncate(folder / "log.jsonl", 0),
    )
    assert refused(lambda: is_done(experiment, "evaluate", path)).startswith(
        f"{path}: was made from another {stage_path(experiment, 'rl')} (manifest "
    )
    changed = experiment.changed({"evaluate.num_beams": 12})
    assert "evaluate.num_beams: 10 -> 12" in refused(lambda: is_done(changed, "evaluate", path))
