"""Everything an experiment has measured on the test split: one table here, one page in ``runs/<name>/report.html``.

python -m minionerec.summary --config configs/quickstart.yaml
"""

from __future__ import annotations

from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation.results import TITLES, results
from minionerec.experiment.artifacts import COMMANDS, stage_path
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from minionerec.pages.experiment_page import write_page
from minionerec.pages.text import metrics_table


def main(experiment: Experiment) -> None:
    """Print the table and which of its rows are still to be made, then write the page."""
    found = results(experiment)
    if not found:
        raise UserError(
            f"{stage_path(experiment, '')}: nothing is measured yet; run `{COMMANDS['baselines']}` or "
            f"`{COMMANDS['evaluate']}` with the same --config first"
        )
    users = {result.metrics["num_users"] for result in found if "num_users" in result.metrics}
    print(
        f"{experiment.name}: full-catalogue ranking of the test split"
        + "".join(f", {n} users" for n in sorted(users))
    )
    print(metrics_table({result.name: result.metrics for result in found}))
    names = {result.name for result in found}
    for name, title in TITLES.items():
        if title not in names:
            print(
                f"{title}: not evaluated; run `{COMMANDS['evaluate']} --evaluate.checkpoint {name}` with the same --config"
            )
    print(f"page: {write_page(experiment, found)}")


if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
