"""Recommend the next items for one history.

    python recommend.py --config configs/quickstart.yaml --history ID,ID,... [--k 10] [--evaluate.exclude_history true]
    python recommend.py ... --evaluate.fusion '{model: 0.5, markov: 0.5}'

Item ids are those of runs/<name>/data/items.parquet, oldest first. The model is the one of
``evaluate.checkpoint``; with ``evaluate.fusion`` its list is united with those of rules, as
evaluation does it, and scores are mixed probabilities.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment

if TYPE_CHECKING:
    from minionerec.catalogue.samples import Sample, Samples


def main() -> None:
    experiment, flags = read_command_line(__doc__, own=("history", "k"))
    if not flags.get("history"):
        raise UserError(
            "--history is missing; give item ids with commas, oldest first, e.g. --history 12,7,31"
        )
    if not flags.get("k", "10").isdigit() or int(flags.get("k", "10")) < 1:
        raise UserError(f"--k: got '{flags['k']}', expected a whole number from 1")
    history = [word.strip() for word in flags["history"].split(",") if word.strip()]
    recommend(experiment, history, int(flags.get("k", "10")))


def recommend(experiment: Experiment, history: list[str], k: int) -> None:
    """Load the model, rank the catalogue, print ids, scores and titles."""
    import torch

    from evaluate import find_checkpoint
    from minionerec.catalogue import inputs
    from minionerec.catalogue.prompts import load_template
    from minionerec.catalogue.samples import Sample
    from minionerec.evaluation import ranking
    from minionerec.experiment import artifacts, processes
    from minionerec.model import backbone

    processes.quiet_libraries()
    s = experiment.evaluate
    data_dir, sids_dir = (
        artifacts.require_stage(experiment, "data"),
        artifacts.require_stage(experiment, "sids"),
    )
    samples, sids = inputs.load_catalogue(experiment, data_dir, sids_dir)
    index = {item_id: i for i, item_id in enumerate(sids.item_ids)}
    unknown = [item_id for item_id in history if item_id not in index]
    if unknown:
        near = difflib.get_close_matches(unknown[0], sids.item_ids, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; ids look like '{sids.item_ids[0]}'"
        raise UserError(
            f"--history: {len(unknown)} of {len(history)} ids are not in {data_dir / 'items.parquet'}: "
            f"{', '.join(unknown[:5])}{hint}"
        )
    checkpoint, _ = find_checkpoint(experiment)
    backbone.check_sids(checkpoint, sids)
    model, tokenizer = backbone.load(
        checkpoint,
        backbone.precision(experiment.model.dtype)[0],
        experiment.model.trust_remote_code,
    )
    renderer = inputs.renderer(
        tokenizer,
        load_template(checkpoint, experiment.model.template),
        sids,
        samples,
        experiment.model.max_tokens,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trie = inputs.trie(sids, tokenizer).to(device)
    sample = Sample(
        "", tuple(index[item_id] for item_id in history)[-experiment.data.max_history :], 0, 0
    )
    unwanted = [{index[item_id] for item_id in history}] if s.exclude_history else None
    leaves, scores = ranking.rank(
        ranking.Ranker(
            model.to(device),
            [sample],
            renderer,
            trie,
            max(k, s.num_beams),
            normalize=experiment.model.normalize,
            unwanted=unwanted,
        )
    )
    record = ranking.predictions([sample], leaves, scores, trie, sids.item_ids, unwanted)[0]
    if s.fusion:
        record = united(experiment, record, sample, samples, unwanted)
    titles = dict(zip(sids.item_ids, samples.items["title"], strict=True))
    print("history (oldest first):")
    for item_id in history:
        print(f"      {item_id}  {titles[item_id]}")
    print("recommended:")
    for rank, (item_id, score) in enumerate(
        zip(record["item_ids"][:k], record["scores"][:k], strict=True), 1
    ):
        print(f"{rank:>4}  {score:9.4f}  {item_id}  {titles[item_id]}")


def united(
    experiment: Experiment,
    record: dict[str, Any],
    sample: Sample,
    samples: Samples,
    unwanted: list[set[int]] | None,
) -> dict[str, Any]:
    """The model's list united with those of the rules of ``evaluate.fusion``."""
    from minionerec.catalogue.samples import seen_items
    from minionerec.evaluation import fused
    from minionerec.experiment import artifacts
    from minionerec.rankers import fusion

    s = experiment.evaluate
    seen = None
    if s.exclude_history:
        seen = seen_items(artifacts.require_stage(experiment, "data"), "valid")
    rankers, shares = fused.rankers_of(
        s.fusion, samples, artifacts.require_stage(experiment, "sids"), seen
    )
    model = fused.lists_of([record], samples.item_ids)
    both = fused.unite(model, rankers, [sample], unwanted)
    fused_lists = fusion.fuse(both, shares, len(samples.items))
    return fused.records(*fused_lists, [sample], samples.item_ids)[0]


if __name__ == "__main__":
    with one_line_errors():
        main()
