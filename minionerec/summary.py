"""One table of everything an experiment has measured on the test split: baselines, SFT, RL, other checkpoints.

    python -m minionerec.summary --config configs/quickstart.yaml
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minionerec.artifacts import COMMANDS, MANIFEST, stage_path, verify
from minionerec.config import UserError, one_line_errors, read_command_line
from minionerec.report import metrics_table
from minionerec.settings import Experiment

TITLES = {"sft": "SFT", "rl": "RL"}


def measured(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Name -> ``metrics.json``, baselines first (in the order of the settings), then SFT, RL and further checkpoints."""
    baselines, evaluate = stage_path(experiment, "baselines"), stage_path(experiment, "evaluate")
    found = {path.parent.name: path for path in sorted(baselines.glob("*/metrics.json"))}
    rows = {name: read_metrics(found[name]) for name in experiment.baselines.methods if name in found}
    rows |= {name: read_metrics(path) for name, path in found.items() if name not in rows}
    checkpoints = {path.parent.name.removesuffix("-test"): path for path in sorted(evaluate.glob("*-test/metrics.json"))}
    for name in sorted(checkpoints, key=lambda name: (name not in TITLES, name == "rl", name)):
        rows[TITLES.get(name, name)] = read_metrics(checkpoints[name])
    return rows


def read_metrics(path: Path) -> dict[str, Any]:
    """One ``metrics.json``, compared with the manifest of the directory that it was committed in.

    Raises:
        UserError: it is not JSON, or not what was written.
    """
    for folder in path.parents[:2]:
        if (folder / MANIFEST).is_file():
            verify(folder)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete {path.parent} and make it again") from None


def main(experiment: Experiment) -> None:
    """Print the table and which of its rows are still to be made."""
    rows = measured(experiment)
    if not rows:
        raise UserError(f"{stage_path(experiment, '')}: nothing is measured yet; run `{COMMANDS['baselines']}` or "
                        f"`{COMMANDS['evaluate']}` with the same --config first")
    users = {metrics["num_users"] for metrics in rows.values() if "num_users" in metrics}
    print(f"{experiment.name}: full-catalogue ranking of the test split" + "".join(f", {n} users" for n in sorted(users)))
    print(metrics_table(rows))
    for name, title in TITLES.items():
        if title not in rows:
            print(f"{title}: not evaluated; run `{COMMANDS['evaluate']} --evaluate.checkpoint {name}` with the same --config")


if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
