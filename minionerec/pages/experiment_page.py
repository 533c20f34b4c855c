"""``runs/<name>/report.html``: one experiment on one page, from its settings to twenty users.

The page stands alone (no scripts, no network) and shows what is there: a stage that is missing is
named with its command. Whatever is read comes from committed directories that are checked first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from minionerec.errors import UserError
from minionerec.evaluation.results import Result, comparisons
from minionerec.experiment.files import fsync
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from minionerec.pages import number_sections as numbers
from minionerec.pages import stage_sections as stages
from minionerec.pages.examples import best_examples
from minionerec.pages.exports import metrics_csv, write_exports
from minionerec.pages.html import render

FILE = "report.html"


def write_page(experiment: Experiment, found: Sequence[Result]) -> Path:
    """Write the page, replacing an earlier one in one step.

    Returns:
        The page's path.

    Raises:
        UserError: the disk is full or not writable; an earlier page is then still there.
    """
    path = stage_path(experiment, FILE)
    staging = path.with_name(f".{FILE}")
    text = page(experiment, found)
    try:
        staging.write_text(text, encoding="utf-8")
        fsync(staging)
        os.replace(staging, path)
        figures = path.with_name("figures")
        write_exports(figures, pages_of(experiment, text))
        (figures / "metrics.csv").write_text(metrics_csv(found), encoding="utf-8")
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written: {os.strerror(error.errno or 0)}; "
            "make room there, then run again"
        ) from error
    return path


def pages_of(experiment: Experiment, text: str) -> dict[str, str]:
    """This page and the one of stage 1, by what their exported files begin with."""
    pages = {"": text}
    report = stage_path(experiment, "sids") / FILE
    if report.is_file():
        pages["sids-"] = report.read_text(encoding="utf-8")
    return pages


def page(experiment: Experiment, found: Sequence[Result]) -> str:
    """The page's text; every section that there is something for, the answer first."""
    compared = comparisons(found, experiment)
    return render(
        "experiment.html",
        title=f"Experiment {experiment.name}",
        verdict=numbers.headline(compared, found),
        results=numbers.results(found, experiment.seed),
        differences=numbers.differences(compared),
        num_baselines=sum(result.is_baseline for result in found),
        slices=numbers.slice_charts(found),
        widths=numbers.width_chart(found),
        cost=numbers.cost(found),
        examples=best_examples(experiment, found),
        training=stages.training(experiment),
        sids=stages.sids(experiment),
        data=stages.data(experiment),
        pipeline=stages.pipeline(experiment),
        missing=stages.missing(experiment, found),
    )
