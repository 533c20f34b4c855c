"""Everything an experiment has measured on the test split: one table, and one page beside it."""

from __future__ import annotations

from minionerec.errors import UserError
from minionerec.evaluation.results import TITLES, results
from minionerec.evaluation.terms import footnotes, marked, terms_of
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import COMMANDS, stage_path
from minionerec.pages.experiment_page import write_page
from minionerec.pages.text import metrics_table


def main(experiment: Experiment) -> None:
    """Print the table and which of its rows are still to be made, then write the page.

    Raises:
        UserError: nothing is measured yet.
    """
    found = results(experiment)
    if not found:
        raise UserError(
            f"{stage_path(experiment, '')}: nothing is measured yet; run `{COMMANDS['baselines']}` "
            f"or `{COMMANDS['evaluate']}` with the same --config first"
        )
    table = {}
    users = set()
    terms = {result.name: terms_of(result.directory) for result in found}
    shown = marked(terms)
    for result in found:
        table[shown[result.name]] = result.metrics
        if "num_users" in result.metrics:
            users.add(result.metrics["num_users"])
    counts = "".join(f", {count} users" for count in sorted(users))
    print(f"{experiment.name}: full-catalogue ranking of the test split{counts}")
    print(metrics_table(table))
    for line in footnotes(terms):
        print(line)
    for name, title in TITLES.items():
        if title not in terms:
            command = f"{COMMANDS['evaluate']} --evaluate.checkpoint {name}"
            print(f"{title}: not evaluated; run `{command}` with the same --config")
    print(f"page: {write_page(experiment, found)}")
