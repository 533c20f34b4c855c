"""Loading data, settings or checkpoints runs no code: neither ours asks for it, nor does a file get
what it plants to run.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import evaluate
import sft
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.sids import load_sids
from minionerec.catalogue.sources import cells
from minionerec.errors import UserError
from minionerec.experiment import config
from minionerec.experiment.commit import commit
from minionerec.experiment.manifest import MANIFEST, Parent, opened, read_manifest
from minionerec.experiment.stages import partial_path, stage_path
from minionerec.model import backbone
from minionerec.training.checkpoints import CheckpointKeeper, last_checkpoint
from minionerec.training.weighted_rewards import weighted_rewards
from rqvae import build_sids, embed_items
from tests.rqvae.test_sids_stage import world as sids_world
from tests.worlds import tiny_run

ROOT = Path(__file__).resolve().parents[2]
SFT = {"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 32, "eval_rows": 10}
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {".venv", "runs", "build"} & set(path.relative_to(ROOT).parts)
)

# ------------------------------------------------------------------------------ what our code calls

NEVER = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "dill.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.UnsafeLoader",
    "yaml.Loader",
    "yaml.FullLoader",
    "importlib.import_module",
    "runpy.run_path",
}
MUST_SAY = {"torch.load": ("weights_only", "True"), "yaml.load": ("Loader", "SafeLoader")}
NEVER_SAID = {
    "shell": "True",
    "allow_pickle": "True",
    "weights_only": "False",
    "trust_remote_code": "True",
}


def dangerous(tree: ast.AST) -> list[str]:
    """Every place of a module that could run what it reads, as ``line: what``."""
    found = []
    for node in ast.walk(tree):
        name = (
            ast.unparse(node.func)
            if isinstance(node, ast.Call)
            else ast.unparse(node)
            if isinstance(node, ast.Attribute)
            else ""
        )
        if name in NEVER:
            found.append(f"{node.lineno}: {name}")
        if isinstance(node, ast.Call):
            said = {
                word.arg: ast.unparse(word.value).removeprefix("yaml.") for word in node.keywords
            }
            found += [
                f"{node.lineno}: {key}={value}"
                for key, value in NEVER_SAID.items()
                if said.get(key) == value
            ]
            key, value = MUST_SAY.get(name, ("", ""))
            if key and said.get(key) != value:
                found.append(f"{node.lineno}: {name} without {key}={value}")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "exec(x)",
        "os.system(x)",
        "pickle.load(f)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "yaml.load(t, Loader=yaml.Loader)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "__import__(name)",
        "pd.read_pickle(p)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_search_for_dangerous_calls_finds_each(line):
    assert dangerous(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "ast.literal_eval(x)",
        "model.eval()",
        "torch.load(p, weights_only=True)",
        "re.compile(x)",
        "yaml.load(t, Loader=yaml.SafeLoader)",
        "load(p, settings.trust_remote_code)",
    ],
)
def test_the_search_for_dangerous_calls_lets_the_others_be(line):
    assert not dangerous(ast.parse(line))


def test_no_code_of_the_repository_runs_what_it_reads():
    assert len(SOURCES) > 60
    found = {
        str(path.relative_to(ROOT)): dangerous(ast.parse(path.read_text(encoding="utf-8")))
        for path in SOURCES
    }
    # These import what our own tables and folders name, or a part of pip, never what a file of the
    # user says
    for name in (
        "minionerec/rankers/baseline.py",
        "minionerec/experiment/lacking.py",
        "tests/commands/test_benchmarks.py",
        "tests/house/test_source.py",
    ):
        found[name] = [place for place in found[name] if "import_module" not in place]
    # Runs a script of ours that the launcher names, and its import statements before
    workers = found["minionerec/experiment/workers.py"]
    assert {place.split(": ")[1] for place in workers} == {"exec", "compile", "runpy.run_path"}
    del found["minionerec/experiment/workers.py"]
    # Runs the cells of the notebook that is part of this repository
    del found["tests/serving/test_recommender.py"]
    assert {name: places for name, places in found.items() if places} == {}


def test_a_checkpoints_own_code_is_a_decision_that_is_off():
    from minionerec.experiment.settings import ModelSettings

    assert ModelSettings().trust_remote_code is False


# ------------------------------------------------------------------------ what a file plants to run


class Planted:
    """Pickled, it makes a file when it is read."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path):
    """A file that exists in the end if anything planted has run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refused(work, *words: str) -> str:
    """The single line that work is refused with, which holds these words."""
    with pytest.raises(UserError) as caught:
        work()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    return said


def test_a_plant_would_run_if_it_were_unpickled(tmp_path):
    """So that the tests below can fail."""
    pickle_file = tmp_path / "plant"
    pickle_file.write_bytes(pickle.dumps(Planted(tmp_path / "made")))
    with open(pickle_file, "rb") as handle:
        getattr(pickle, "load")(handle)  # noqa: B009 (the search above is to find no other)
    assert (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a finished SFT stage."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    experiment = tiny_run(folder, sft=SFT)
    sft.train(experiment, stage_path(experiment, "sft"))
    return folder


def checkpoint_with(trained: Path, tmp_path: Path) -> tuple[Path, object]:
    """A copy of the checkpoint as a foreign folder, and a function that evaluates it."""
    folder = tmp_path / "foreign"
    shutil.copytree(trained / "tiny/sft", folder, ignore=shutil.ignore_patterns(MANIFEST))
    experiment = tiny_run(
        trained,
        sft=SFT,
        evaluate={"checkpoint": str(folder), "num_beams": 10, "bootstrap_samples": 0},
    )
    return folder, lambda: evaluate.evaluate(experiment, tmp_path / "results")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_not_read(trained, tmp_path, canary, name):
    folder, score = checkpoint_with(trained, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"weight": Planted(canary)}))
    refused(score, f"model '{folder}': cannot be loaded")


def test_weights_that_are_a_pickle_under_the_name_of_safetensors_are_not_read(
    trained, tmp_path, canary
):
    folder, score = checkpoint_with(trained, tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": Planted(canary)}))
    refused(score, f"model '{folder}': cannot be loaded")


def test_a_pickled_adapter_is_not_read(trained, tmp_path, canary):
    """transformers looks for an adapter beside any checkpoint by itself."""
    folder, score = checkpoint_with(trained, tmp_path)
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 2,
                "base_model_name_or_path": str(folder),
                "target_modules": ["q_proj"],
                "task_type": "CAUSAL_LM",
            }
        )
    )
    torch.save({"weight": Planted(canary)}, folder / "adapter_model.bin")
    refused(score, f"model '{folder}': holds an adapter beside the whole model")


def with_own_code(folder: Path, canary: Path, file: str, **changes: object) -> None:
    """Let a checkpoint's settings name classes of a module beside them."""
    (folder / "planted.py").write_text(
        f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Config: pass\n"
    )
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))


def test_code_that_a_checkpoint_brings_is_not_run_unless_the_settings_say_so(
    trained, tmp_path, canary
):
    folder, score = checkpoint_with(trained, tmp_path)
    own = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}
    with_own_code(folder, canary, "config.json", model_type="planted", auto_map=own)
    sids = load_sids(trained / "tiny/sids/sids.json")
    for work in (
        score,
        lambda: backbone.build(backbone.ModelSettings(backbone=str(folder)), sids, [], 0),
    ):
        refused(
            work,
            f"model '{folder}': cannot be loaded",
            "; if you trust whoever wrote that code, set model.trust_remote_code: true",
        )


def test_the_tokenizer_class_that_a_checkpoint_brings_is_not_run(trained, tmp_path, canary):
    """transformers then reads its tokenizer.json, which is data."""
    folder, score = checkpoint_with(trained, tmp_path)
    own = {"AutoTokenizer": ["planted.Tokenizer", None]}
    with_own_code(folder, canary, "tokenizer_config.json", tokenizer_class="Planted", auto_map=own)
    score()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_the_state_of_a_resumed_checkpoint_is_not_unpickled(tmp_path, canary, monkeypatch, name):
    """Even in a directory that is whole by its manifest: somebody may have made one."""
    experiment = tiny_run(tmp_path / "w", sft=SFT | {"epochs": 2})
    path, partial = (
        stage_path(experiment, "sft"),
        partial_path(experiment, "sft"),
    )
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            CheckpointKeeper, "forget_older", lambda *_, **__: 1 / 0
        )  # after the first save
        sft.train(experiment, path)
    checkpoint = last_checkpoint(partial)
    manifest = read_manifest(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "staging", ignore=shutil.ignore_patterns(MANIFEST))
    torch.save({"state": Planted(canary)}, tmp_path / "staging" / name)
    shutil.rmtree(checkpoint)
    commit(
        tmp_path / "staging",
        checkpoint,
        "sft",
        manifest["settings"],
        [opened(path.with_name("data")), opened(path.with_name("sids"))],
    )
    refused(lambda: sft.train(experiment, path), f"{checkpoint}: ", "delete")


def test_object_arrays_are_not_unpickled(tmp_path, canary):
    experiment = tiny_run(
        tmp_path / "w", sft=SFT, rl={"rewards": {"semantic": 1.0}, "num_generations": 4}
    )
    sft.train(experiment, stage_path(experiment, "sft"))
    folder = tmp_path / "embeddings"
    folder.mkdir()
    np.save(
        folder / "embeddings.npy", np.array([Planted(canary)], dtype=object), allow_pickle=bool(1)
    )
    (folder / "item_ids.json").write_text('["i0"]')
    refused(lambda: build_sids.read_embeddings(folder, ["i0"]), f"{folder / 'embeddings.npy'}: ")
    catalogue = Catalogue.open(experiment)
    catalogue = dataclasses.replace(catalogue, sids_stage=Parent(folder, ""))
    refused(lambda: weighted_rewards(catalogue), f"{folder / 'embeddings.npy'}: ")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:pathlib.Path.touch [{0}]",
        "!!python/object/apply:os.system ['touch {0}']",
        "!!python/name:os.system ''",
        "!!python/module:antigravity ''",
    ],
)
def test_tags_of_a_yaml_file_construct_nothing(tmp_path, canary, text):
    file = tmp_path / "demo.yaml"
    file.write_text(f"name: demo\ndata:\n  path: {text.format(canary)}\n")
    refused(lambda: config.read_experiment(file), f"{file}:3: ", "is not allowed")
    refused(
        lambda: config.read_experiment(tmp_path / "none.yaml", {"data.path": text.format(canary)})
    )
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text.format(canary))


@pytest.mark.parametrize(
    "cell",
    [
        "[__import__('os').system('touch {0}')]",
        "[__import__('pathlib').Path('{0}').touch()]",
        "['a', open('{0}', 'w')]",
        "[(lambda: open('{0}', 'w'))()]",
        "[f\"{{open('{0}', 'w')}}\"]",
    ],
)
def test_cells_of_a_table_are_data(canary, cell):
    for read in (cells.read_list, cells.read_categories):
        with pytest.raises(ValueError):
            read(cell.format(canary))
    cells.read_text(cell.format(canary))


def encoder_with(tmp_path: Path) -> tuple[Path, object]:
    """An encoder's folder, and a function that embeds a small catalogue with it."""
    from benchmarks.encoder import save_encoder  # seconds, and only here

    (tmp_path / "made").mkdir()
    folder = save_encoder(tmp_path / "made", ["drill", "saw"])
    experiment = sids_world(tmp_path / "shop", encoder=str(folder))
    shutil.rmtree(stage_path(experiment, "embeddings"), ignore_errors=True)
    return folder, lambda: embed_items.main(experiment)


def test_modules_that_an_encoder_brings_are_not_imported(tmp_path, canary, monkeypatch):
    folder, embed = encoder_with(tmp_path)
    (folder / "planted.py").write_text(
        f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "planted.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    refused(embed, "sids.encoder: ", "cannot be loaded")


def test_pickled_weights_of_an_encoder_are_not_read(tmp_path, canary):
    folder, embed = encoder_with(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Planted(canary)}))
    refused(embed, "sids.encoder: ", "cannot be loaded")
