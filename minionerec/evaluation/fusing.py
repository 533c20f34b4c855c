"""The fusion of an evaluation: the model's lists united with the rules', measured, written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from minionerec.catalogue.inputs import Catalogue
from minionerec.evaluation import fused, prediction_files
from minionerec.evaluation.cost import cost
from minionerec.evaluation.run import measure_lists
from minionerec.experiment.commit import committed
from minionerec.experiment.files import write_json
from minionerec.experiment.lineage import open_folder
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import fusion_path, settings_of
from minionerec.rankers import fusion


def fuse(experiment: Experiment, path: Path) -> dict[str, Any]:
    """The ranking in ``path`` united with those of the rules of ``evaluate.fusion``, beside it.

    Returns:
        Its metrics, as they are written.

    Raises:
        UserError: a rule lacks what it reads, or the ranking is of other rows.
    """
    s = experiment.evaluate

    # The model's lists, and the rankers with what they leave open chosen on validation rows
    start = time.perf_counter()
    catalogue = Catalogue.open(experiment)
    own = open_folder(experiment, path)
    rows = catalogue.samples.splits[s.split]
    model = fused.read_model_lists(path / "predictions.jsonl", rows, catalogue.item_ids)
    rankers, shares, networks = fused.partners_of(catalogue)

    # Unite, weigh, measure
    ready = time.perf_counter()
    unwanted = catalogue.seen(s.split) if s.exclude_history else None
    united = fused.unite(model, rankers, rows, unwanted)
    items, scores = fusion.fuse(united, shares, s.num_beams)
    records = fused.records(items, scores, rows, catalogue.item_ids)
    metrics = measure_lists(catalogue, items, None, len(catalogue.item_ids))
    metrics |= {
        "fusion": fused.weights_of(s.fusion),
        "chosen": {ranker.name: ranker.made_with for ranker in rankers},
        "cost": cost(0, time.perf_counter() - ready, len(rows), train_seconds=ready - start),
    }
    target = fusion_path(experiment)
    parents = [*catalogue.parents, own, *networks]
    with committed(target, "fusion", settings_of(experiment, "fusion"), parents) as staging:
        write_json(staging / "metrics.json", metrics)
        prediction_files.write(staging, prediction_files.with_lines(records))
    return metrics
