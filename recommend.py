"""Recommend the next items for one history.

    python recommend.py --config configs/quickstart.yaml --history ID,ID,... [--k 10]
                        [--evaluate.exclude_history true]
    python recommend.py ... --evaluate.fusion '{model: 0.5, markov: 0.5}'

Item ids are those of runs/<name>/data/items.parquet, oldest first. The model is the one of
``evaluate.checkpoint``; with ``evaluate.fusion`` its list is united with those of rules, as
evaluation does it, and scores are mixed probabilities.
"""

from __future__ import annotations

import csv

from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation import fused
from minionerec.experiment import processes
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from minionerec.model.policy import Policy


def main() -> None:
    """Read the command line and recommend."""
    experiment, flags = read_command_line(__doc__, own=("history", "k"))
    if not flags.get("history"):
        raise UserError(
            "--history is missing; give item ids with commas, oldest first, e.g. --history 12,7,31 "
            "(an id that holds a comma stands in double quotes: --history '\"a,b\",31')"
        )
    k = flags.get("k", "10")
    if not k.isdecimal() or int(k) < 1:
        raise UserError(f"--k: got '{k}', expected a whole number from 1")
    history = history_ids(flags["history"])
    if not history:
        raise UserError(f"--history: got '{flags['history']}', expected item ids with commas")
    recommend(experiment, history, int(k))


def history_ids(text: str) -> list[str]:
    """The item ids of ``--history``; one that holds a comma stands in double quotes.

    >>> history_ids('12, "bolts, long" ,7')
    ['12', 'bolts, long', '7']
    """
    words = next(csv.reader([text], skipinitialspace=True), [])
    return [word.strip() for word in words if word.strip()]


def recommend(experiment: Experiment, history: list[str], k: int) -> None:
    """Open the catalogue and the model, rank, print ids, scores and titles."""
    processes.quiet_libraries()
    catalogue = Catalogue.open(experiment)
    try:
        shown = catalogue.positions(history)
    except UserError as error:
        raise UserError(f"--history: {error}") from error
    policy = Policy.load(experiment.evaluate.checkpoint, catalogue)
    policy = policy.to(processes.processes().device)
    exclude = [history] if experiment.evaluate.exclude_history else None
    if experiment.evaluate.fusion:
        recommended = fused.recommend(policy, history, k, exclude)
    else:
        recommended = policy.recommend([history], k, exclude=exclude)[0]
    titles = catalogue.items["title"]
    print("history (oldest first):")
    for item_id, item in zip(history, shown, strict=True):
        print(f"      {item_id}  {titles.iloc[item]}")
    print("recommended:")
    for rank, (item_id, title, score) in enumerate(recommended, 1):
        print(f"{rank:>4}  {score:9.4f}  {item_id}  {title}")


if __name__ == "__main__":
    with one_line_errors():
        main()
