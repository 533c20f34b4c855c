"""A stage's first look, before torch is loaded: settings, earlier stages, is there work to do?

    python -m minionerec.experiment.preflight sft --config C [--section.key value ...]

The launcher runs this before it starts a stage. Exit code 0: go ahead. 10: nothing to do, and it
says why (finished before, or ``--help``). 2: a mistake, one line each on stderr. Earlier stages are
compared with their manifests by name and size; the stage itself compares every digest when it
reads.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from pathlib import Path

from minionerec.errors import UserError, one_line_errors, relative_to
from minionerec.experiment.config import help_text, read_command_line, wants_help
from minionerec.experiment.lineage import is_finished, open_folder, open_stage
from minionerec.experiment.manifest import MANIFEST
from minionerec.experiment.run import forget_interrupted
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import (
    CHECKPOINT,
    STAGES,
    TRAINED,
    needs_of,
    next_command,
    path_of,
)

ROOT = Path(__file__).resolve().parents[2]
NOTHING_TO_DO = 10
NAMES = [stage.name for stage in STAGES.values() if not stage.part_of]


def main(argv: list[str]) -> int:
    """Check ``[STAGE, --config, C, ...]``; returns the exit code.

    Raises:
        UserError: anything that would stop the stage later.
    """
    stage = check_stage(argv)
    if wants_help(argv):
        print(help_text(usage_of(ROOT / STAGES[stage].script), argv))
        return NOTHING_TO_DO
    own = ("dry_run",) if stage in TRAINED else ()
    experiment, _ = read_command_line(__doc__, argv[1:], own)
    if is_finished(experiment, stage):
        forget_interrupted(experiment, stage)
        print(
            f"{path_of(experiment, stage)} is there already, made with these settings; --redo "
            f"{stage} makes it again. Next: `{next_command(stage)}` with the same --config"
        )
        return NOTHING_TO_DO
    check_stage_reporters(experiment, stage)
    require_inputs(experiment, stage)
    if stage == "sids" and experiment.sids.method == "opq":
        require_faiss()
    return 0


def require_faiss() -> None:
    """Refuse ``opq`` before its embeddings are made where its package is missing.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            "sids.method: opq needs the package faiss-cpu; run `pip install -e '.[faiss]'`"
        )


def check_stage(argv: list[str]) -> str:
    """The stage that the first word names.

    Raises:
        UserError: it names none.
    """
    if not argv or argv[0] not in NAMES:
        raise UserError(
            f"preflight: got '{argv[0] if argv else ''}', expected one of {', '.join(NAMES)}"
        )
    return argv[0]


def reporters(report_to: str) -> list[str]:
    """The names in ``report_to``."""
    return [name.strip() for name in report_to.split(",")]


def check_reporters(report_to: str, setting: str) -> None:
    """Check before anything is loaded that every tracker is known and installed.

    Raises:
        UserError: naming the setting.
    """
    if set(reporters(report_to)) <= {"none", "all"}:
        return
    # Here, because it takes seconds
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in reporters(report_to):
        if name in ("none", "all"):
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "none, tensorboard or wandb"
            raise UserError(f"{setting}: unknown tracker '{name}'; {hint}")
        if name not in integration_utils.get_available_reporting_integrations():
            raise UserError(
                f"{setting}: '{name}' is not installed; pip install {name}, or set {setting}: none"
            )


def check_stage_reporters(experiment: Experiment, stage: str) -> None:
    """``check_reporters`` for a stage that has trackers.

    Raises:
        UserError: as ``check_reporters``.
    """
    named = {"sft": experiment.sft.report_to, "rl": experiment.rl.report_to}
    check_reporters(named.get(stage, "none"), f"{stage}.report_to")


def usage_of(script: Path) -> str:
    """A script's docstring, without running the script."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").strip()


def require_inputs(experiment: Experiment, stage: str) -> None:
    """Look at every earlier stage that this one reads.

    Raises:
        UserError: with a line for each that is missing, damaged, mixed up or made with other
            settings.
    """
    problems: dict[str, None] = {}  # a parent's line once, however many stages were made from it
    for name in needs_of(experiment, stage):
        try:
            open_stage(experiment, name, digests=False)
        except UserError as error:
            problems[str(error)] = None
    if CHECKPOINT in STAGES[stage].needs and experiment.evaluate.checkpoint not in TRAINED:
        try:
            look_at_checkpoint(experiment, Path(experiment.evaluate.checkpoint))
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise UserError("\n".join(problems))


def look_at_checkpoint(experiment: Experiment, folder: Path) -> None:
    """A checkpoint that is given by its path.

    Raises:
        UserError: there is no such folder, or it was made with other settings.
    """
    if not folder.is_dir():
        raise UserError(
            f"evaluate.checkpoint: got '{experiment.evaluate.checkpoint}', expected sft, rl or "
            f"the folder of a checkpoint; no such folder{relative_to(folder)}"
        )
    if (folder / MANIFEST).is_file():
        open_folder(experiment, folder, digests=False)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
