"""What an experiment's numbers can be worth: leaks, repeats, cold targets, rules that cost nothing.

    python data/audit.py --config configs/quickstart.yaml

Reads ``runs/<name>/data`` and, where they are there, the embeddings of ``sids`` (near-duplicates)
and the tokenizer of ``sft`` (rendered prompts). Prints a verdict per check and writes
``runs/<name>/audit/{audit.json,audit.html}``; an audit made before those stages were there is made
again.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import AutoTokenizer

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import load_samples
from minionerec.catalogue.sids import LEVELS
from minionerec.catalogue.templates import load_template
from minionerec.errors import one_line_errors
from minionerec.evaluation.audit_checks import audit
from minionerec.evaluation.audit_evidence import Check, Evidence, Prompts
from minionerec.experiment.choices import TASKS
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import map_array, remove, write_json
from minionerec.experiment.lineage import is_done, open_stage
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import read_manifest
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.model.policy import how_it_is_asked
from minionerec.pages.html import render

STATES = {"ok": "good", "look": "caution", "problem": "bad"}  # words of the page's style sheet
COLUMNS = 120  # of the printed table


def main() -> None:
    """Make the audit, again if stages have come since, and print it."""
    experiment, _ = read_command_line(__doc__, own=())
    path = stage_path(experiment, "audit")
    if is_done(experiment, "audit") and len(read_manifest(path)["parents"]) < len(
        found(experiment)
    ):
        with locked(path):
            remove(path)
    run_stage("audit", write_audit, experiment)
    print(text_table(json.loads((path / "audit.json").read_text(encoding="utf-8"))))
    print(f"\npage: {path / 'audit.html'}")


def found(experiment: Experiment) -> list[str]:
    """The stages to look at: ``data``, and those of ``sids`` and ``sft`` that are there."""
    later = [stage for stage in ("sids", "sft") if stage_path(experiment, stage).exists()]
    return ["data", *later]


def write_audit(experiment: Experiment, path: Path) -> None:
    """Read, check, write: from top to bottom."""
    parents = {stage: open_stage(experiment, stage) for stage in found(experiment)}
    sources = {stage: parent.path for stage, parent in parents.items()}
    checks_made = audit(read_evidence(experiment, sources))
    settings = settings_of(experiment, "audit")
    with committed(path, "audit", settings, list(parents.values())) as staging:
        write(staging, experiment.name, checks_made)


def read_evidence(experiment: Experiment, sources: dict[str, Path]) -> Evidence:
    """Everything that the checks look at."""
    samples = load_samples(sources["data"], experiment.data.max_history)
    # Texts as numbers of the distinct ones: an object for each cell would be gigabytes
    texts = ["user_id", "item_id", "split"]
    file = sources["data"] / "interactions.parquet"
    table = pq.read_table(file, columns=[*texts, "timestamp"], read_dictionary=texts)
    interactions = table.unify_dictionaries().to_pandas()
    split_rule = json.loads((sources["data"] / "stats.json").read_text(encoding="utf-8"))["split"]
    embeddings = None
    if "sids" in sources:
        embeddings = map_array(sources["sids"] / "embeddings.npy")
    prompts = (
        read_prompts(experiment, sources["sft"]) if {"sids", "sft"} <= sources.keys() else None
    )
    return Evidence(samples, interactions, split_rule, embeddings, prompts)


def read_prompts(experiment: Experiment, checkpoint: Path) -> Prompts:
    """The prompts of a trained checkpoint, as it reads them; without its weights."""
    catalogue = Catalogue.open(experiment)
    settings = experiment.model
    trusted = settings.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trusted)
    template = load_template(checkpoint, settings.template)
    longest = how_it_is_asked(checkpoint, settings, tokenizer)["max_tokens"]
    renderer = catalogue.renderer(tokenizer, template, longest)
    tasks = []
    for task in TASKS:
        if experiment.sft.tasks.get(task) or experiment.rl.tasks.get(task):
            tasks.append(task)
    written = []
    for codes in catalogue.sids.codes:
        tokens = [f"<{LEVELS[level]}_{code}>" for level, code in enumerate(codes)]
        written.append("".join(tokens))

    def read(task: str, shown: Sequence[int]) -> str:
        return tokenizer.decode(renderer.prompt(task, shown))

    return Prompts(tasks, template, written, read)


def write(staging: Path, name: str, found: list[Check]) -> None:
    """``audit.json`` and ``audit.html``."""
    rows = [check._asdict() for check in found]
    write_json(staging / "audit.json", {"line": summary(found), "checks": rows})
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
