"""Stage 0: raw or tabular data to items, interactions and a split.

    python data/prepare.py --config configs/quickstart.yaml
    python data/prepare.py --config configs/own_dataset.yaml --data.path my_shop

Writes runs/<name>/data: items.parquet, interactions.parquet (global order; a user's rows in file
order are the user's sequence), stats.json and, where the source brings SIDs, given_sids.json.
Filters are those of the MiniOneRec report, arXiv:2510.24431: title length, time window, iterative
k-core; a split that the source carries is taken as it is.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

from pathlib import Path
from typing import Any

from minionerec.catalogue import prepared
from minionerec.catalogue.advice import advice_on
from minionerec.catalogue.sources import times
from minionerec.errors import one_line_errors
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.lineage import require_unchanged
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of


def main() -> None:
    """Read the command line and make the stage."""
    run_stage("data", prepare, read_command_line(__doc__, own=())[0])


def prepare(experiment: Experiment, path: Path) -> None:
    """Source, filters, split, files: from top to bottom."""
    source = prepared.load_source(experiment)
    require_unchanged(source.files)
    own = prepared.keeps_own_split(experiment.data)
    choose = prepared.keep_as_is if own else prepared.apply_filters
    items, interactions, dropped = choose(source, experiment.data)
    # What was read is let go: the tables are the largest that this process holds
    source = source._replace(items=items)
    interactions = prepared.assign_splits(interactions, experiment.data, own)
    stats = prepared.describe(items, interactions, dropped, source, experiment.data, own)
    settings = settings_of(experiment, "data")
    with committed(path, "data", settings, parents=[], sources=source.files) as staging:
        prepared.write(staging, items, interactions, stats, source.given_sids)
    for note in source.notes:
        print(f"note: {note}")
    print(summary(stats))
    for line in advice_on(stats, experiment):
        print(f"advice: {line}")


def summary(stats: dict[str, Any]) -> str:
    """What was dropped, the counts and one line per split, for the screen."""
    lines = [f"source {stats['source']}, split {stats['split']}, filters: {stats['filters']}"]
    if stats["timestamps"] != "order only":
        first, last = map(times.day_of, stats["time_range"])
        lines.append(f"times are {stats['timestamps']}, {first} to {last}")
    lines += [
        f"  dropped {count:,} {reason}" for reason, count in stats["dropped"].items() if count
    ]
    lines.append(
        f"{stats['users']:,} users, {stats['items']:,} items "
        f"({stats['items_with_interactions']:,} with interactions), "
        f"{stats['interactions']:,} interactions, repeat rate {stats['repeat_rate']:.1%}"
    )
    lines.append(
        f"{'split':<6} {'samples':>9} {'users':>8} {'history':>8} {'repeated':>9} "
        f"{'in history':>11} {'in train':>9} "
        f"{'cold':>6}"
    )
    for name, row in stats["splits"].items():
        lines.append(
            f"{name:<6} {row['samples']:>9,} {row['users']:>8,} "
            f"{row['history_length']['50%']:>8.1f} "
            f"{row['repeat_rate']:>9.1%} {row['target_in_history_rate']:>11.1%} "
            f"{row['target_seen_in_train_rate']:>9.1%} {row['cold_targets']:>6,}"
        )
    leaks = stats["leaks"]
    lines.append(
        f"leak check: {leaks['interactions_checked']:,} interactions of "
        f"{leaks['users_checked']:,} users, "
        "none that is held out comes before one in train"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        main()
