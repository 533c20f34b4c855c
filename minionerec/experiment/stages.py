"""The stages of an experiment: one table, from which everything that must know a stage takes it.

The launcher, the first look (``preflight.py``), the refusals (``lineage.py``), the messages that
name a command, manifests and the README's table all read ``STAGES``. A new stage is a row here and
a script that passes its work to ``run.run_stage``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.settings import BaselineSettings, Experiment, Settings

TRAINED = ("sft", "rl")  # stages that make a checkpoint
CHECKPOINT = "evaluate.checkpoint"  # as a need: the stage or the folder that this setting names


@dataclass(frozen=True)
class Stage:
    """What there is to know about a stage without running it."""

    name: str  # of its folder in runs/<name>, and in manifests
    what: str  # in a few words
    command: str  # what one types to make it
    script: str  # the Python file that makes it
    needs: tuple[str, ...]  # stages whose folders it reads
    settings: tuple[str, ...]  # sections and keys that decide what it writes
    next: str  # what comes after it: another stage, or a command
    part_of: str = ""  # the stage whose command makes this one on its way
    parallel: bool = False  # several processes may share its work


_BASELINES = ("seed", "evaluate.bootstrap_samples", "evaluate.exclude_history")
_KEYS = [f"baselines.{key}" for key in BaselineSettings.model_fields]
_NETWORKS = tuple(key for key in _KEYS if ".tiger_" not in key and key != "baselines.methods")
_TIGER = (
    "baselines.weight_decay",
    "baselines.patience",
    *(key for key in _KEYS if ".tiger_" in key),
)

_TABLE = (
    Stage(
        name="data",
        what="raw or tabular data -> items, interactions, a split",
        command="bash data/prepare.sh",
        script="data/prepare.py",
        needs=(),
        settings=("seed", "data"),
        next="sids",
    ),
    Stage(
        name="embeddings",
        what="item text -> one vector per item",
        command="bash rqvae/rqvae.sh",
        script="rqvae/embed_items.py",
        needs=("data",),
        settings=(
            "sids.text",
            "sids.encoder",
            "sids.max_text_tokens",
            "sids.embeddings",
            "sids.embeddings_weight",
        ),
        next="sids",
        part_of="sids",
        parallel=True,
    ),
    Stage(
        name="sids",
        what="item text -> embeddings -> quantiser -> semantic IDs",
        command="bash rqvae/rqvae.sh",
        script="rqvae/build_sids.py",
        needs=("data", "embeddings"),
        settings=("seed", "sids"),
        next="sft",
    ),
    Stage(
        name="baselines",
        what="rules and small networks on the same rows",
        command="bash baselines/run.sh",
        script="baselines/run.py",
        needs=("data",),
        settings=_BASELINES,
        next="sft",
    ),
    Stage(
        name="baseline_networks",
        what="sequential networks over items",
        command="bash baselines/run.sh",
        script="baselines/run.py",
        needs=("data",),
        settings=(*_BASELINES, *_NETWORKS),
        next="sft",
        part_of="baselines",
    ),
    Stage(
        name="baseline_tiger",
        what="an encoder-decoder over SIDs",
        command="bash baselines/run.sh",
        script="baselines/run.py",
        needs=("data",),
        settings=(*_BASELINES, *_TIGER),
        next="sft",
        part_of="baselines",
    ),
    Stage(
        name="sft",
        what="supervised fine-tuning of the language model",
        command="bash sft.sh",
        script="sft.py",
        needs=("data", "sids"),
        settings=("seed", "model", "sft"),
        next="rl",
        parallel=True,
    ),
    *(
        Stage(
            name=f"{kind}_folds",
            what=f"{kind} networks that have not seen the rows they are asked about",
            command="bash sft.sh",
            script="sft.py",
            needs=("data",),
            settings=("seed", "data.max_history", "sft.rows", *_NETWORKS),
            next="sft",
            part_of="sft",
        )
        for kind, row in BASELINES.items()
        if row.module == "sequential"
    ),
    Stage(
        name="collaborative",
        what="the SASRec of the collaborative reward",
        command="bash rl.sh",
        script="rl.py",
        needs=("data",),
        settings=("seed", *_NETWORKS),
        next="rl",
        part_of="rl",
    ),
    Stage(
        name="rl",
        what="GRPO over constrained beam search",
        command="bash rl.sh",
        script="rl.py",
        needs=("data", "sids", "sft"),
        settings=("seed", "model", "rl", "sft.holdout_for_rl"),
        next="evaluate",
        parallel=True,
    ),
    Stage(
        name="evaluate",
        what="ranking of the whole catalogue, HR@K and NDCG@K",
        command="bash evaluate.sh",
        script="evaluate.py",
        needs=("data", "sids", CHECKPOINT),
        settings=(
            "seed",
            "evaluate",
            "model.dtype",
            "model.template",
            "model.normalize",
            "model.max_tokens",
            "data.max_history",
        ),
        next="python -m minionerec.summary",
        parallel=True,
    ),
    Stage(
        name="fusion",
        what="a model's lists united with those of rules",
        command="bash evaluate.sh",
        script="evaluate.py",
        needs=("data", "sids"),
        settings=("seed", "evaluate", "data.max_history"),
        next="python -m minionerec.summary",
        part_of="evaluate",
    ),
    Stage(
        name="audit",
        what="what the numbers can be worth: leaks, repeats, cold targets",
        command="python data/audit.py",
        script="data/audit.py",
        needs=("data",),
        settings=("data.max_history", "model.max_tokens", "sft.tasks", "rl.tasks"),
        next="sft",
    ),
    Stage(
        name="add_items",
        what="SIDs for items that joined the catalogue later",
        command="python rqvae/add_items.py",
        script="rqvae/add_items.py",
        needs=("data", "sids"),
        settings=("seed", "sids"),
        next="evaluate",
    ),
)
STAGES = {stage.name: stage for stage in _TABLE}
COMMANDS = {stage.name: stage.command for stage in _TABLE}

# Settings that change how fast or how verbosely a stage works, never what it writes.
WITHOUT_EFFECT = {"sids.encoder_tokens", "sft.report_to", "rl.report_to", "evaluate.batch_size"}
# What only the named stage depends on: a model's own ranking is the same whatever joins it.
ONLY_OF = {"evaluate.fusion": "fusion"}
# Settings of how a stage computes: another value than the parent's is a choice, no contradiction.
OF_EACH_STAGE = {
    "model.dtype",
    "model.tune",
    "model.gradient_checkpointing",
    "model.lora_rank",
    "model.lora_alpha",
    "model.trust_remote_code",
}


def stage_path(experiment: Experiment, stage: str) -> Path:
    """``runs/<name>/<stage>``."""
    return Path(experiment.output_dir) / experiment.name / stage


def partial_path(experiment: Experiment, stage: str) -> Path:
    """Where an unfinished stage keeps its checkpoints."""
    return stage_path(experiment, f"{stage}.partial")


def evaluation_path(experiment: Experiment) -> Path:
    """``runs/<name>/evaluate/<checkpoint>-<split>``."""
    checkpoint = result_name(experiment.evaluate.checkpoint)
    return stage_path(experiment, "evaluate") / f"{checkpoint}-{experiment.evaluate.split}"


def result_name(checkpoint: str) -> str:
    """What the results of ``evaluate.checkpoint`` are called: ``sft``, ``rl``, or after the path.

    A path's last component alone would do for people, but ``runs/other/sft`` is not ``sft``, and
    two runs have a ``checkpoint-8``: a digest of the path as it was given keeps them apart.

    >>> result_name("rl"), result_name("runs/other/rl"), result_name("runs/other/rl/")
    ('rl', 'rl-1de9d1', 'rl-1de9d1')
    """
    if checkpoint in TRAINED:
        return checkpoint
    given = os.path.normpath(checkpoint)
    digest = hashlib.sha256(given.encode()).hexdigest()[:6]
    # A path may lead through a link; the directory is called after what it leads to.
    return f"{Path(given).resolve().name}-{digest}"


def fusion_path(experiment: Experiment) -> Path:
    """``runs/<name>/evaluate/<checkpoint>-fusion-<split>``, beside the model's own ranking."""
    own = evaluation_path(experiment)
    split = experiment.evaluate.split
    return own.with_name(f"{own.name.removesuffix(split)}fusion-{split}")


def path_of(experiment: Experiment, stage: str) -> Path:
    """The directory that a stage makes, or that holds those that it makes."""
    if stage == "fusion":
        return fusion_path(experiment)
    return evaluation_path(experiment) if stage == "evaluate" else stage_path(experiment, stage)


def baseline_path(experiment: Experiment, method: str) -> Path:
    """``runs/<name>/baselines/<method>``."""
    return stage_path(experiment, "baselines") / method


class Output(NamedTuple):
    """A directory that a stage makes."""

    stage: str  # in its manifest
    path: Path
    needs: tuple[str, ...]  # stages whose directories are read for it
    facts: dict[str, str]  # what its name says, as its manifest has it


def outputs(experiment: Experiment, stage: str) -> list[Output]:
    """What a stage makes: one directory, of the baselines one for every method."""
    if stage == "evaluate" and experiment.evaluate.fusion:
        both = (stage, "fusion")
        return [Output(name, path_of(experiment, name), STAGES[name].needs, {}) for name in both]
    if stage != "baselines":
        return [Output(stage, path_of(experiment, stage), STAGES[stage].needs, {})]
    found = []
    for method in dict.fromkeys(experiment.baselines.methods):
        row = BASELINES[method]
        needs = (*STAGES[row.stage].needs, *(["sids"] if row.reads_sids else []))
        path = baseline_path(experiment, method)
        found.append(Output(row.stage, path, needs, {"method": method}))
    return found


def needs_of(experiment: Experiment, stage: str) -> list[str]:
    """The stages whose directories a command reads with these settings, in the table's order."""
    named = {need for output in outputs(experiment, stage) for need in output.needs}
    if CHECKPOINT in named and experiment.evaluate.checkpoint in TRAINED:
        named.add(experiment.evaluate.checkpoint)
    made_on_the_way = {row.name for row in _TABLE if row.part_of == stage}
    return [name for name in STAGES if name in named - made_on_the_way]


def scripts_of(stage: str) -> list[Stage]:
    """The rows whose scripts a stage's command runs, one after the other; its own comes last."""
    own = STAGES[stage]
    on_the_way = [row for row in _TABLE if row.part_of == stage and row.script != own.script]
    return [*on_the_way, own]


def parts_path(path: Path) -> Path:
    """Where long work that will be called ``path`` keeps its finished parts."""
    return path.with_name(f".{path.name}.parts")


def next_command(stage: str) -> str:
    """What one runs after a stage."""
    following = STAGES[stage].next
    return STAGES[following].command if following in STAGES else following


def settings_of(experiment: Experiment, stage: str) -> dict[str, Any]:
    """The settings that decide what ``stage`` writes, flat: ``{"sft.epochs": 10, ...}``."""
    everything = flat_settings(experiment)
    for key, only in ONLY_OF.items():
        if stage != only:
            del everything[key]
    chosen = STAGES[stage].settings
    return {
        key: value
        for key, value in everything.items()
        if (key in chosen or key.partition(".")[0] in chosen) and key not in WITHOUT_EFFECT
    }


def flat_settings(experiment: Experiment) -> dict[str, Any]:
    """Every setting by its dotted name."""
    flat: dict[str, Any] = {}
    for name, value in experiment.model_dump().items():
        if isinstance(getattr(experiment, name), Settings):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def settings_difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``["seed: 42 -> 43", ...]`` for the keys on which two flat settings disagree."""
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
