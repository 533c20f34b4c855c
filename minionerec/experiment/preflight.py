"""A stage's first look, before torch is loaded: are the settings right, are the earlier stages there, is there work to do?

    python -m minionerec.experiment.preflight sft --config configs/quickstart.yaml [--section.key value ...]

The shell scripts run this before they start a stage. Exit code 0: go ahead. 10: nothing to do, and it says why (finished
before, or ``--help``). 2: a mistake, one line each on stderr. Earlier stages are compared with their manifests by name
and size; the stage itself compares every digest when it reads them.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.artifacts import (
    COMMANDS,
    baseline_path,
    baseline_stage,
    evaluation_path,
    fusion_path,
    is_done,
    require_stage,
    stage_path,
)
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.config import describe_settings, read_command_line
from minionerec.experiment.settings import Experiment

ROOT = Path(__file__).resolve().parents[2]
NOTHING_TO_DO = 10  # minionerec/launch.sh knows it as ALREADY_DONE


@dataclass(frozen=True)
class Stage:
    """A stage's Python script, the stages whose output it reads, and what one runs after it."""

    script: str
    needs: tuple[str, ...]
    next: str


STAGES = {
    "data": Stage("data/prepare.py", (), COMMANDS["sids"]),
    "sids": Stage("rqvae/build_sids.py", ("data",), COMMANDS["sft"]),
    "sft": Stage("sft.py", ("data", "sids"), COMMANDS["rl"]),
    "rl": Stage("rl.py", ("data", "sids", "sft"), COMMANDS["evaluate"]),
    "evaluate": Stage("evaluate.py", ("data", "sids"), "python -m minionerec.summary"),
    "baselines": Stage("baselines/run.py", ("data",), COMMANDS["sft"]),
}


def main(argv: list[str]) -> int:
    """Check ``[STAGE, --config, C, ...]``; returns the exit code.

    Raises:
        UserError: anything that would stop the stage later.
    """
    if not argv or argv[0] not in STAGES:
        raise UserError(
            f"preflight: got '{argv[0] if argv else ''}', expected one of {', '.join(STAGES)}"
        )
    stage = STAGES[argv[0]]
    if {"-h", "--help"} & set(argv):
        print(usage_of(ROOT / stage.script) + "\n\n" + describe_settings())
        return NOTHING_TO_DO
    experiment, _ = read_command_line(__doc__, argv[1:], own=())
    done = finished_path(experiment, argv[0])
    if done:
        print(
            f"{done} is there already, made with these settings; delete it to make it again. "
            f"Next: `{stage.next}` with the same --config"
        )
        return NOTHING_TO_DO
    require_inputs(experiment, argv[0])
    return 0


def usage_of(script: Path) -> str:
    """A script's docstring, without running the script."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").strip()


def finished_path(experiment: Experiment, stage: str) -> Path | None:
    """The stage's directory when it is finished: whole, made with these settings and from the parents now on disk."""
    if stage == "baselines":
        methods = experiment.baselines.methods
        done = all(
            is_done(experiment, baseline_stage(method), baseline_path(experiment, method))
            for method in methods
        )
        return stage_path(experiment, stage) if done else None
    if stage == "evaluate" and experiment.evaluate.fusion:
        fused = fusion_path(experiment)
        if not is_done(experiment, "fusion", fused):
            return None
    path = evaluation_path(experiment) if stage == "evaluate" else stage_path(experiment, stage)
    return path if is_done(experiment, stage, path) else None


def require_inputs(experiment: Experiment, stage: str) -> None:
    """Raise a ``UserError`` with a line for every earlier stage that is missing, damaged or mixed up."""
    problems, checkpoint = [], experiment.evaluate.checkpoint
    needs = [
        *STAGES[stage].needs,
        *([checkpoint] if stage == "evaluate" and checkpoint in ("sft", "rl") else []),
    ]
    methods = experiment.baselines.methods
    if stage == "baselines" and any(BASELINES[name].reads_sids for name in methods):
        needs.append("sids")
    for name in needs:
        try:
            require_stage(experiment, name, digests=False)
        except UserError as error:
            problems.append(str(error))
    if stage == "evaluate" and checkpoint not in needs and not Path(checkpoint).is_dir():
        problems.append(
            f"evaluate.checkpoint: got '{checkpoint}', expected sft, rl or the folder of a checkpoint"
        )
    if problems:
        raise UserError("\n".join(problems))


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
