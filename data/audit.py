"""What an experiment's numbers can be worth: leaks, repeats, cold targets, rules that cost nothing.

    python data/audit.py --config configs/quickstart.yaml

Reads ``runs/<name>/data`` and, where they are there, the embeddings of ``sids`` (near-duplicates) and the tokenizer of ``sft``
(rendered prompts). Prints a verdict per check and writes ``runs/<name>/audit/{audit.json,audit.html}``; an audit made before those
stages were there is made again.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minionerec.catalogue.samples import Samples, load_samples
from minionerec.errors import one_line_errors
from minionerec.evaluation.audit_checks import Check, Evidence, Prompts, audit
from minionerec.experiment import artifacts
from minionerec.experiment.choices import TASKS
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from minionerec.pages.html import render

STATES = {"ok": "good", "look": "caution", "problem": "bad"}  # words of the page's style sheet
COLUMNS = 120  # of the printed table


def main() -> None:
    """Read, check, write, show: from top to bottom."""
    experiment, _ = read_command_line(__doc__, own=())
    path = artifacts.stage_path(experiment, "audit")
    sources = find_sources(experiment)
    with artifacts.locked(path):
        if not is_current(experiment, path, sources):
            shutil.rmtree(path, ignore_errors=True)
            settings = artifacts.relevant_settings(experiment, "audit")
            with artifacts.committed(path, "audit", settings, list(sources.values())) as staging:
                write(staging, experiment.name, audit(read_evidence(experiment, sources)))
    print(text_table(json.loads((path / "audit.json").read_text(encoding="utf-8"))))
    print(f"\npage: {path / 'audit.html'}")


def find_sources(experiment: Experiment) -> dict[str, Path]:
    """The verified directories to look at: ``data``, and those of ``sids`` and ``sft`` that are there."""
    later = [stage for stage in ("sids", "sft") if artifacts.stage_path(experiment, stage).exists()]
    return {stage: artifacts.require_stage(experiment, stage) for stage in ("data", *later)}


def is_current(experiment: Experiment, path: Path, sources: dict[str, Path]) -> bool:
    """Whether there is an audit of all these directories.

    Raises:
        UserError: as ``artifacts.is_done``.
    """
    return artifacts.is_done(experiment, "audit", path) and len(
        artifacts.read_manifest(path)["parents"]
    ) == len(sources)


def read_evidence(experiment: Experiment, sources: dict[str, Path]) -> Evidence:
    """Everything that the checks look at."""
    samples = load_samples(sources["data"], experiment.data.max_history)
    interactions = pd.read_parquet(
        sources["data"] / "interactions.parquet",
        columns=["user_id", "item_id", "timestamp", "split"],
    )
    split_rule = json.loads((sources["data"] / "stats.json").read_text(encoding="utf-8"))["split"]
    embeddings = None
    if "sids" in sources:
        embeddings = artifacts.load_array(sources["sids"] / "embeddings.npy")
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    prompts = (
        read_prompts(experiment, samples, sources) if {"sids", "sft"} <= sources.keys() else None
    )
    return Evidence(samples, interactions, split_rule, embeddings, prompts)


def read_prompts(experiment: Experiment, samples: Samples, sources: dict[str, Path]) -> Prompts:
    """The prompts of a trained checkpoint, as it reads them."""
    from transformers import AutoTokenizer

    from minionerec.catalogue import inputs
    from minionerec.catalogue.prompts import load_template
    from minionerec.catalogue.sids import LEVELS, SIDS_FILE, load_sids

    sids = load_sids(sources["sids"] / SIDS_FILE, samples.item_ids)
    tokenizer = AutoTokenizer.from_pretrained(
        sources["sft"], trust_remote_code=experiment.model.trust_remote_code
    )
    template = load_template(sources["sft"], experiment.model.template)
    renderer = inputs.renderer(tokenizer, template, sids, samples, experiment.model.max_tokens)
    tasks = [
        task for task in TASKS if experiment.sft.tasks.get(task) or experiment.rl.tasks.get(task)
    ]
    written = [
        "".join(f"<{LEVELS[level]}_{code}>" for level, code in enumerate(codes))
        for codes in sids.codes
    ]
    return Prompts(
        tasks, template, written, lambda task, shown: tokenizer.decode(renderer.prompt(task, shown))
    )


def write(staging: Path, name: str, found: list[Check]) -> None:
    """``audit.json`` and ``audit.html``."""
    rows = [check._asdict() for check in found]
    artifacts.write_json(staging / "audit.json", {"line": summary(found), "checks": rows})
    shown = {
        "line": summary(found),
        "checks": [
            {
                **row,
                "state": STATES[row["verdict"]],
                "advice": "" if row["verdict"] == "ok" else row["advice"],
            }
            for row in rows
        ],
    }
    page = render("audit.html", title=f"Audit of {name}", verdict=shown)
    (staging / "audit.html").write_text(page, encoding="utf-8")


def summary(found: list[Check]) -> str:
    """How many checks have which verdict, those that are not ok by name."""
    names = {
        verdict: [check.name for check in found if check.verdict == verdict] for verdict in STATES
    }
    others = [
        f"{verdict}: {', '.join(names[verdict])}"
        for verdict in ("problem", "look")
        if names[verdict]
    ]
    return "; ".join([f"{len(names['ok'])} of {len(found)} checks ok", *others])


def text_table(report: dict[str, Any]) -> str:
    """A verdict, a name and a sentence per check, for the screen."""
    width = max(len(row["name"]) for row in report["checks"])
    indent = " " * (len("problem") + width + 4)
    lines = [
        textwrap.fill(
            row["found"],
            COLUMNS,
            initial_indent=f"{row['verdict']:<7}  {row['name']:<{width}}  ",
            subsequent_indent=indent,
        )
        for row in report["checks"]
    ]
    return "\n".join([*lines, "", report["line"]])


if __name__ == "__main__":
    with one_line_errors():
        main()
