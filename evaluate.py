"""Stage 4: HR@K and NDCG@K of a checkpoint over the full catalogue.

    bash evaluate.sh --config configs/quickstart.yaml [--evaluate.checkpoint sft|rl|PATH] [--evaluate.split test|valid]

Writes runs/<name>/evaluate/<checkpoint>-<split>/{metrics.json,predictions.jsonl}. Metrics are item-level: a SID that
several items share counts in expectation; the SID-string number stands beside it. PATH may be any Hugging Face
checkpoint whose tokenizer knows this experiment's SID tokens; with a prompt_template.json in it, its own prompts are used.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from minionerec.config import UserError, one_line_errors, read_command_line
from minionerec.settings import Experiment


def main() -> None:
    experiment, _ = read_command_line(__doc__, own=())
    from minionerec import artifacts, runs

    path = artifacts.evaluation_path(experiment)
    if artifacts.is_done(experiment, "evaluate", path):
        runs.say(f"{path} is finished; its numbers are in {path / 'metrics.json'}")
        return
    with runs.locked(path):
        evaluate(experiment, path)


def evaluate(experiment: Experiment, path: Path) -> None:
    """Checkpoint, ranking, metrics: from top to bottom."""
    from minionerec import artifacts, backbone, ranking, runs
    from minionerec.dataset import train_counts
    from minionerec.metrics import score_predictions
    from minionerec.prompts import load_template
    from minionerec.report import metrics_table

    s = experiment.evaluate
    runs.quiet_libraries()
    runs.check_launch()
    state = runs.processes()

    # Data, SIDs and the checkpoint that goes with them
    data_dir, sids_dir = artifacts.require_stage(experiment, "data"), artifacts.require_stage(experiment, "sids")
    samples, sids = runs.load_catalogue(experiment, data_dir, sids_dir)
    checkpoint, parents = find_checkpoint(experiment)
    backbone.check_sids(checkpoint, sids)
    dtype, _ = backbone.precision(experiment.model.dtype)
    model, tokenizer = backbone.load(checkpoint, dtype, experiment.model.trust_remote_code)
    renderer = runs.renderer(tokenizer, load_template(checkpoint, experiment.model.template), sids, samples, experiment.sft.max_tokens)
    trie = runs.trie(sids, tokenizer).to(state.device)

    # Rank
    rows = samples.splits[s.split]
    runs.say(f"{len(rows):,} {s.split} rows, {s.num_beams} beams, {runs.describe(model)}")
    start = time.perf_counter()
    with backbone.fits_memory("evaluate.batch_size or evaluate.num_beams"):
        leaves, scores = ranking.rank(model.to(state.device), rows, renderer, trie, s.num_beams, batch_size=s.batch_size,
                                      normalize=s.normalize, exclude_history=s.exclude_history, progress="ranking")
    seconds = time.perf_counter() - start
    records = ranking.predictions(rows, leaves, scores, trie, sids.item_ids, s.exclude_history)

    # Measure
    counts = train_counts(samples.train_sequences, len(samples.items))
    metrics = score_predictions(records, ranking.sid_of(sids), sids.item_ids, dict(zip(sids.item_ids, counts.tolist(), strict=True)),
                                [[sids.item_ids[i] for i in row.history] for row in rows], s.bootstrap_samples, experiment.seed)
    if metrics["invalid"] or metrics["duplicates"]:
        raise UserError(f"{metrics['invalid']} recommended ids are not in the catalogue and {metrics['duplicates']} are repeated; "
                        "nothing was written, since this must never happen: please report it with your config")
    metrics |= {"num_beams": s.num_beams, "checkpoint": str(s.checkpoint), "split": s.split, "sids_sha256": sids.sha256,
                "normalize": s.normalize, "exclude_history": s.exclude_history, "empty": sum(not record["item_ids"] for record in records)}
    if state.is_main_process:
        with artifacts.committed(path, "evaluate", artifacts.relevant_settings(experiment, "evaluate"), [data_dir, sids_dir, *parents],
                                 sids_sha256=sids.sha256) as staging:
            artifacts.write_json(staging / "metrics.json", metrics)
            with open(staging / "predictions.jsonl", "w", encoding="utf-8") as handle:
                handle.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if metrics["empty"]:
        runs.say(f"{metrics['empty']:,} users got an empty list: their histories exclude the whole catalogue (evaluate.exclude_history)")
    runs.say(f"\n{metrics_table({f'{Path(s.checkpoint).name} ({s.split})': metrics})}\n\n{len(rows):,} rows in {seconds:.1f} s "
             f"({len(rows) / seconds:.1f} users/s); invalid 0, duplicates 0; top-10 coverage {metrics['coverage@10']:.1%}"
             f"\nwritten to {path}; all experiments side by side: python -m minionerec.summary --config ...")


def find_checkpoint(experiment: Experiment) -> tuple[Path, list[Path]]:
    """The checkpoint's folder, and the committed stage that it is (none for a foreign folder)."""
    from minionerec import artifacts

    name = experiment.evaluate.checkpoint
    if name in ("sft", "rl"):
        path = artifacts.require_stage(experiment, name)
        return path, [path]
    path = Path(name)
    if not (path / "config.json").is_file():
        raise UserError(f"evaluate.checkpoint: got '{name}', expected sft, rl or a folder with a config.json")
    if (path / artifacts.MANIFEST).is_file():
        artifacts.verify(path)
        return path, [path]
    return path, []


if __name__ == "__main__":
    with one_line_errors():
        main()
