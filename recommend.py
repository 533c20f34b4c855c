"""Recommend the next items: for one history on the screen, or for many users from file to file.

    python recommend.py --config configs/quickstart.yaml --history ID,ID,... [--k 10]
                        [--evaluate.exclude_history true] [--filters filters.json]
    python recommend.py --config C --histories users.jsonl --out recs.parquet [--k 10]
                        [--filters filters.json] [--attributes prices.csv]
    python recommend.py --config C --users all --out recs.jsonl

Item ids are those of runs/<name>/data/items.parquet, oldest first. The model is the one of
``evaluate.checkpoint``; with ``evaluate.fusion`` its list is united with those of rules, as
evaluation does it, and scores are mixed probabilities.

``--histories`` (.csv, .tsv, .jsonl, .parquet) has user_id and history (a list of ids), or a row per
interaction: user_id, item_id[, timestamp]. ``--users all`` takes everyone's whole history from the
run. ``--out`` ends in .jsonl, .csv or .parquet. ``--filters`` is JSON: {"allow": [ids], "deny":
[ids], "where": {column: [values]}}; ``--attributes`` adds columns to filter by, by item_id. After a
kill the same command goes on; ``accelerate launch recommend.py ...`` ranks in several processes.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

from pathlib import Path

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment import processes
from minionerec.experiment.allocator import keep_freed_memory
from minionerec.experiment.config import read_command_line
from minionerec.experiment.lock import locked
from minionerec.experiment.run import is_main_process, say
from minionerec.experiment.settings import Experiment
from minionerec.serving import batch
from minionerec.serving.batch import Request, history_ids
from minionerec.serving.recommender import Recommender

FLAGS = ("history", "k", "histories", "users", "out", "filters", "attributes")


def main() -> None:
    """Read the command line and recommend."""
    keep_freed_memory()
    experiment, flags = read_command_line(__doc__, own=FLAGS)
    asked = [name for name in ("history", "histories", "users") if flags.get(name)]
    if not asked:
        raise UserError(
            "--history is missing; give item ids with commas, oldest first, e.g. --history 12,7,31 "
            "(an id that holds a comma stands in double quotes: --history '\"a,b\",31'), "
            "or --histories FILE or --users all with --out FILE"
        )
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} are given together; keep one")
    k = flags.get("k", "10")
    if not k.isdecimal() or int(k) < 1:
        raise UserError(f"--k: got '{k}', expected a whole number from 1")
    filters = Path(flags["filters"]) if "filters" in flags else None
    request = batch.read_request(filters, int(k))
    attributes = flags.get("attributes")
    if asked == ["history"]:
        history = history_ids(flags["history"])
        if not history:
            raise UserError(f"--history: got '{flags['history']}', expected item ids with commas")
        recommend(experiment, history, int(k), request, attributes)
    else:
        to_file(experiment, flags, request)


def recommend(
    experiment: Experiment,
    history: list[str],
    k: int,
    request: Request | None = None,
    attributes: str | None = None,
) -> None:
    """Open the catalogue and the model, rank, print ids, scores and titles."""
    asked = request or Request()
    recommender = Recommender.open(experiment, attributes)
    try:
        shown = recommender.catalogue.positions(history)
    except UserError as error:
        raise UserError(f"--history: {error}") from error
    mask = recommender.mask(asked.allow, asked.deny, asked.where)
    _, ranked = next(recommender.rank([shown], k, mask=mask))
    titles = recommender.catalogue.items["title"]
    print("history (oldest first):")
    for item_id, item in zip(history, shown, strict=True):
        print(f"      {item_id}  {titles.iloc[item]}")
    print("recommended:")
    for one in recommender.listed(ranked, shown):
        print(f"{one.rank:>4}  {one.score:9.4f}  {one.item_id}  {one.title}")


def to_file(experiment: Experiment, flags: dict[str, str], request: Request) -> None:
    """Rank everyone of a file, or of the run, into ``--out``."""
    target = Path(flags.get("out", ""))
    batch.check_target(target)
    if flags.get("users", "all") != "all":
        raise UserError(f"--users: got '{flags['users']}', expected all (or --histories FILE)")
    recommender = Recommender.open(experiment, flags.get("attributes"))
    if "histories" in flags:
        users = batch.read_users(Path(flags["histories"]), recommender.filters)
    else:
        users = batch.all_users(recommender.catalogue, recommender.filters)
    say(f"{len(users.ids):,} users, {recommender.num_beams} beams, {request.k} items each")
    if is_main_process():
        with locked(target):
            batch.recommend_to_file(recommender, users, request, target)
    else:
        batch.recommend_to_file(recommender, users, request, target)
    processes.processes().wait_for_everyone()
    say(f"written to {target}")


if __name__ == "__main__":
    with one_line_errors():
        main()
