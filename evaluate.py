"""Stage 4: HR@K, NDCG@K, MRR@K and Recall@K of a checkpoint over the full catalogue.

    bash evaluate.sh --config configs/quickstart.yaml [--evaluate.checkpoint sft|rl|PATH] [--evaluate.split test|valid]

Writes runs/<name>/evaluate/<checkpoint>-<split>/{metrics.json,predictions.jsonl}, and with
``evaluate.fusion`` beside it <checkpoint>-fusion-<split>: the same lists united with those of rules
(``minionerec/rankers/fusion.py``). Metrics are item-level: a SID that several items share counts in
expectation; the SID-string number stands beside it. PATH may be any Hugging Face checkpoint whose
tokenizer knows this experiment's SID tokens; with a prompt_template.json in it, its own prompts are
used.

Several processes rank a share each. What is ranked is kept in evaluate/.<checkpoint>-<split>.parts: after a kill the same
command ranks the rest. However it came about, predictions.jsonl has the same bytes (on a CPU, with one thread).
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment

if TYPE_CHECKING:
    from minionerec.catalogue.samples import Samples
    from minionerec.catalogue.sids import SidTable
    from minionerec.evaluation.ranking import Ranker


def main() -> None:
    experiment, _ = read_command_line(__doc__, own=())
    from minionerec.experiment import artifacts, processes

    path = artifacts.evaluation_path(experiment)
    if artifacts.is_done(experiment, "evaluate", path):
        processes.say(f"{path} is finished; its numbers are in {path / 'metrics.json'}")
    else:
        with processes.locked(path):
            evaluate(experiment, path)
    if experiment.evaluate.fusion and processes.processes().is_main_process:
        fuse(experiment, path)


def evaluate(experiment: Experiment, path: Path) -> None:
    """Checkpoint, ranking, metrics: from top to bottom."""
    from minionerec.catalogue import inputs
    from minionerec.catalogue.prompts import load_template
    from minionerec.catalogue.samples import seen_items
    from minionerec.evaluation.cost import training_seconds
    from minionerec.evaluation.ranking import Ranker
    from minionerec.experiment import artifacts, processes
    from minionerec.model import backbone

    s = experiment.evaluate
    processes.quiet_libraries()
    processes.check_launch()
    state = processes.processes()

    # Data, SIDs and the checkpoint that goes with them
    data_dir, sids_dir = (
        artifacts.require_stage(experiment, "data"),
        artifacts.require_stage(experiment, "sids"),
    )
    samples, sids = inputs.load_catalogue(experiment, data_dir, sids_dir)
    checkpoint, parents = find_checkpoint(experiment)
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
    trie = inputs.trie(sids, tokenizer).to(state.device)

    # Rank
    rows = samples.splits[s.split]
    processes.say(f"{len(rows):,} {s.split} rows, {s.num_beams} beams, {backbone.describe(model)}")
    settings = artifacts.relevant_settings(experiment, "evaluate")
    digests = {"sids_sha256": sids.sha256, "checkpoint_sha256": checkpoint_digest(checkpoint)}
    facts = (
        settings
        | digests
        | {
            "data": artifacts.read_manifest(data_dir)["manifest_sha256"],
            "evaluate.batch_size": s.batch_size,
        }
    )
    with backbone.fits_memory("evaluate.num_beams"):
        ranker = Ranker(
            model.to(state.device),
            rows,
            renderer,
            trie,
            s.num_beams,
            normalize=experiment.model.normalize,
            unwanted=seen_items(data_dir, s.split) if s.exclude_history else None,
        )
        lines, spent = rank_in_parts(ranker, sids.item_ids, parts_folder(path), facts)

    # Measure
    if state.is_main_process:
        records = [json.loads(line) for line in lines]
        if s.checkpoint in ("sft", "rl"):
            spent["train_seconds"] = training_seconds(checkpoint.parent, s.checkpoint)
        metrics = measure(experiment, samples, sids, trie.num_leaves, records) | {"cost": spent}
        with artifacts.committed(
            path, "evaluate", settings, [data_dir, sids_dir, *parents], **digests
        ) as staging:
            artifacts.write_json(staging / "metrics.json", metrics)
            (staging / "predictions.jsonl").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
        shutil.rmtree(parts_folder(path), ignore_errors=True)
        report(metrics, path)
    state.wait_for_everyone()


def fuse(experiment: Experiment, path: Path) -> None:
    """The ranking in ``path`` united with those of the rules of ``evaluate.fusion``, beside it."""
    from minionerec.catalogue import inputs
    from minionerec.catalogue.samples import seen_items
    from minionerec.evaluation import fused
    from minionerec.evaluation.cost import cost
    from minionerec.experiment import artifacts, processes
    from minionerec.rankers import fusion

    s = experiment.evaluate
    target = artifacts.fusion_path(experiment)
    if artifacts.is_done(experiment, "fusion", target):
        processes.say(f"{target} is finished; its numbers are in {target / 'metrics.json'}")
        return

    # The model's lists, and the rankers with what they leave open chosen on validation rows
    start = time.perf_counter()
    data_dir = artifacts.require_stage(experiment, "data")
    sids_dir = artifacts.require_stage(experiment, "sids")
    samples, sids = inputs.load_catalogue(experiment, data_dir, sids_dir)
    rows = samples.splits[s.split]
    model = fused.read_model_lists(path / "predictions.jsonl", rows, sids.item_ids)
    unwanted = {}
    for split in {"valid", s.split} if s.exclude_history else ():
        unwanted[split] = seen_items(data_dir, split)
    rankers, shares = fused.rankers_of(s.fusion, samples, sids_dir, unwanted.get("valid"))

    # Unite, weigh, measure
    ready = time.perf_counter()
    united = fused.unite(model, rankers, rows, unwanted.get(s.split))
    records = fused.records(*fusion.fuse(united, shares, s.num_beams), rows, sids.item_ids)
    metrics = measure(experiment, samples, None, len(sids.item_ids), records)
    metrics |= {
        "fusion": fused.weights_of(s.fusion),
        "chosen": {ranker.name: ranker.made_with for ranker in rankers},
        "cost": cost(0, time.perf_counter() - ready, len(rows), train_seconds=ready - start),
    }
    with (
        artifacts.locked(target),
        artifacts.committed(
            target,
            "fusion",
            artifacts.relevant_settings(experiment, "fusion"),
            [data_dir, sids_dir, path],
        ) as staging,
    ):
        artifacts.write_json(staging / "metrics.json", metrics)
        with open(staging / "predictions.jsonl", "w", encoding="utf-8") as handle:
            for record in records:
                handle.write(json.dumps(record, ensure_ascii=False) + "\n")
    report(metrics, target)


def rank_in_parts(
    ranker: Ranker, item_ids: list[str], folder: Path, facts: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Rank what no earlier run of the same evaluation has ranked, every process a share of it.

    Args:
        ranker: of all rows.
        item_ids: by item index.
        folder: where finished parts are kept.
        facts: what the rankings depend on; parts of a run with other facts are never used.

    Returns:
        The lines of ``predictions.jsonl`` (empty but in the main process), and the ``cost`` of what was ranked now.
    """
    import torch
    import transformers
    from accelerate.utils import broadcast_object_list, gather_object

    from minionerec.evaluation.cost import cost, peak_memory_mb
    from minionerec.evaluation.ranking import USERS_PER_FORWARD, predictions
    from minionerec.experiment import processes
    from minionerec.experiment.parts import write_part

    state = processes.processes()
    step = -(-facts["evaluate.batch_size"] // USERS_PER_FORWARD)
    parts = [ranker.batches[start : start + step] for start in range(0, len(ranker.batches), step)]
    facts = facts | {
        "dtype": str(ranker.model.dtype),
        "device": state.device.type,
        "users per forward": USERS_PER_FORWARD,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    todo = broadcast_object_list(
        [what_is_missing(folder, facts, parts) if state.is_main_process else None]
    )[0]

    start, mine = time.perf_counter(), todo[state.process_index :: state.num_processes]
    found = ranker.rank(
        [batch for number in mine for batch in parts[number]],
        progress="ranking" if state.is_main_process else None,
    )
    for number in mine:
        records = [
            record
            for batch in parts[number]
            for record in predictions(
                [ranker.samples[i] for i in batch],
                *next(found),
                ranker.trie,
                item_ids,
                None if ranker.unwanted is None else [ranker.unwanted[i] for i in batch],
            )
        ]
        write_part(folder, number, [json.dumps(record, ensure_ascii=False) for record in records])
    peaks = gather_object([peak_memory_mb()])  # waits for all processes
    spent = cost(
        ranker.model.num_parameters(),
        time.perf_counter() - start,
        sum(len(batch) for number in todo for batch in parts[number]),
        prompt_tokens_per_user=sum(map(len, ranker.prompts)) / len(ranker.prompts),
        peak_memory=max(peaks),
    )
    return joined(folder, parts) if state.is_main_process else [], spent


def parts_folder(path: Path) -> Path:
    """Where an unfinished evaluation keeps what is ranked."""
    return path.with_name(f".{path.name}.parts")


def what_is_missing(folder: Path, facts: dict[str, Any], parts: list[list[list[int]]]) -> list[int]:
    """Numbers of the parts that are to be made; says what it found of an earlier run."""
    from minionerec.experiment.parts import missing_parts, open_parts

    changed = open_parts(folder, facts)
    if changed:
        print(
            f"{folder}: held parts of another evaluation ({'; '.join(changed)}); deleted, beginning anew",
            flush=True,
        )
    missing = missing_parts(folder, len(parts))
    if len(missing) < len(parts):
        done = sum(
            len(batch)
            for number, part in enumerate(parts)
            for batch in part
            if number not in set(missing)
        )
        print(f"continuing: {done:,} rows are ranked already, in {folder}", flush=True)
    return missing


def joined(folder: Path, parts: list[list[list[int]]]) -> list[str]:
    """The lines of all parts in the order of the rows.

    Raises:
        UserError: a part is not there: it was damaged, or written by a machine that does not share the folder.
    """
    from minionerec.experiment.parts import read_part

    lines: dict[int, str] = {}
    for number, part in enumerate(parts):
        found = read_part(folder, number)
        if found is None:
            raise UserError(
                f"{folder}: part {number} is missing or damaged, though it was written; run the same command again "
                "(several machines must share this folder)"
            )
        lines |= zip((i for batch in part for i in batch), found, strict=True)
    return [lines[i] for i in range(len(lines))]


def measure(
    experiment: Experiment,
    samples: Samples,
    sids: SidTable | None,
    num_choices: int,
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    """The content of ``metrics.json`` but for the cost.

    Args:
        experiment: whose ``evaluate.split`` was ranked.
        samples: of the experiment.
        sids: None for a ranking that knows items apart.
        num_choices: items, or SIDs, that could be ranked.
        records: lines of ``predictions.jsonl``.

    Raises:
        UserError: there are recommendations that must not be.
    """
    from minionerec.catalogue.samples import train_counts
    from minionerec.evaluation.ranking import sid_of
    from minionerec.evaluation.scoring import score_predictions

    s, ids = experiment.evaluate, samples.item_ids
    counts = train_counts(samples.train_sequences, len(samples.items))
    metrics = score_predictions(
        records,
        sid_of(sids) if sids else None,
        ids,
        dict(zip(ids, counts.tolist(), strict=True)),
        [[ids[i] for i in row.history] for row in samples.splits[s.split]],
        s.bootstrap_samples,
        experiment.seed,
        depth=s.num_beams if s.num_beams < num_choices else len(ids),
    )
    if metrics["invalid"] or metrics["duplicates"]:
        raise UserError(
            f"{metrics['invalid']} recommended ids are not in the catalogue and {metrics['duplicates']} are repeated; "
            "nothing was written, since this must never happen: please report it with your config"
        )
    of_sids = {"sids_sha256": sids.sha256} if sids else {}
    return (
        metrics
        | of_sids
        | {
            "num_beams": s.num_beams,
            "checkpoint": str(s.checkpoint),
            "split": s.split,
            "normalize": experiment.model.normalize,
            "exclude_history": s.exclude_history,
            "empty": sum(not record["item_ids"] for record in records),
        }
    )


def report(metrics: dict[str, Any], path: Path) -> None:
    """Print what was measured."""
    from minionerec.pages.text import metrics_table

    spent = metrics["cost"]
    if metrics["empty"]:
        print(
            f"{metrics['empty']:,} users got an empty list: their histories exclude the whole catalogue (evaluate.exclude_history)"
        )
    coverage = f"; top-10 coverage {metrics['coverage@10']:.1%}" if "coverage@10" in metrics else ""
    print(
        f"\n{metrics_table({path.name: metrics})}\n\n{spent['users']:,} rows ranked in {spent['seconds']:.1f} s "
        f"({spent['users_per_second']:.1f} users/s, {spent['peak_memory_mb']:,.0f} MiB); invalid 0, duplicates 0{coverage}"
        f"\nwritten to {path}; all experiments side by side: python -m minionerec.summary --config ...",
        flush=True,
    )


def checkpoint_digest(checkpoint: Path) -> str:
    """What a checkpoint is beyond its name: its manifest's digest, or that of its files."""
    from minionerec.experiment import artifacts

    committed = (checkpoint / artifacts.MANIFEST).is_file()
    return (
        artifacts.read_manifest(checkpoint)["manifest_sha256"]
        if committed
        else artifacts.folder_sha256(checkpoint)
    )


def find_checkpoint(experiment: Experiment) -> tuple[Path, list[Path]]:
    """The checkpoint's folder, and the committed stage that it is (none for a foreign folder)."""
    from minionerec.experiment import artifacts

    name = experiment.evaluate.checkpoint
    if name in ("sft", "rl"):
        path = artifacts.require_stage(experiment, name)
        return path, [path]
    path = Path(name)
    if not (path / "config.json").is_file():
        raise UserError(
            f"evaluate.checkpoint: got '{name}', expected sft, rl or a folder with a config.json"
        )
    if (path / artifacts.MANIFEST).is_file():
        artifacts.verify(path)
        return path, [path]
    return path, []


if __name__ == "__main__":
    with one_line_errors():
        main()
