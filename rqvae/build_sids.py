"""Stage 1b: item embeddings to semantic IDs.

Sections 3.1 and 3.2 of the MiniOneRec report, arXiv:2510.24431.

    python rqvae/build_sids.py --config configs/quickstart.yaml
    python rqvae/build_sids.py --config C --sids.method rqvae --sids.epochs 1000

Reads ``runs/<name>/data`` and ``runs/<name>/embeddings`` (``rqvae/embed_items.py``); writes
``runs/<name>/sids``: ``sids.json``, ``report.json`` and ``report.html``, the quantiser's weights,
and the embeddings that the SIDs were made from.

Departures from the reference code: (1) the default is residual k-means, which needs no training;
(2) collisions are resolved by minimum-cost assignment to free codes
(``quantizers/collisions.py``); (3) of an RQ-VAE the best epoch is kept, not the last.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd

from minionerec.catalogue.samples import load_samples
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import (
    TIMING,
    append_log,
    link_or_copy,
    map_array,
    sha256_file,
    write_json,
)
from minionerec.experiment.lineage import open_stage
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of
from rqvae.page import write_page
from rqvae.quantizers.collisions import Sid, resolve_collisions
from rqvae.quantizers.methods import fit_quantizer, save_quantizer
from rqvae.quantizers.rqkmeans import Quantised, check_inputs, from_codes
from rqvae.report import build_report, summary
from rqvae.verdict import verdict

EMBEDDING_FACTS = "embeddings.json"  # of stage 1a


def main(experiment: Experiment) -> None:
    """Build ``runs/<name>/sids`` unless it is there, and say what was made."""
    run_stage("sids", build_and_say, experiment)


def build_and_say(experiment: Experiment, final: Path) -> None:
    """Build the SIDs and print what came of it."""
    report = build(experiment, final)
    distinct = report["collisions"]["after"]["distinct_sids"]
    seconds = sum(report["seconds"].values())
    print(summary(report))
    print(
        f"{report['items']} items, {distinct} distinct SIDs by {report['method']}, {seconds:.1f} s"
    )


def build(experiment: Experiment, final: Path) -> dict:
    """Read, quantise, resolve collisions, report, commit ``final``.

    Returns:
        The report, with the seconds that it took.
    """
    parents = [open_stage(experiment, stage) for stage in ("data", "embeddings")]
    data, embedded = (parent.path for parent in parents)
    # Ids alone: what else items have, and interactions, are read when the residuals are gone
    item_ids = pd.read_parquet(data / "items.parquet", columns=["item_id"])["item_id"].tolist()
    embeddings = read_embeddings(embedded, item_ids)
    progress = final.with_name(f".{final.name}.rqvae-progress.safetensors")

    started = time.perf_counter()
    quantised, sizes = quantise(
        experiment, embeddings, item_ids, data, str(embedded / "embeddings.npy"), progress
    )
    fitted = time.perf_counter()
    sids, final_sizes = resolve_collisions(quantised, sizes, experiment.sids.collision)
    seconds = {
        "fit": round(fitted - started, 2),
        "collisions": round(time.perf_counter() - fitted, 2),
    }

    samples = load_samples(data, experiment.data.max_history)
    report = {
        "method": experiment.sids.method,
        "collision": experiment.sids.collision,
        "unknown_tokens": unknown_tokens(embedded),
        **build_report(
            samples.items,
            samples.train_sequences,
            quantised,
            sids,
            final_sizes,
            experiment.sids.text,
            experiment.seed,
        ),
    }
    report["verdict"] = verdict(report)
    text = sids_json(
        dict(zip(item_ids, sids, strict=True)),
        final_sizes,
        experiment.sids.method,
        sha256_file(embedded / "embeddings.npy"),
    )
    with committed(
        final,
        "sids",
        settings_of(experiment, "sids"),
        parents,
        sids_sha256=hashlib.sha256(text.encode()).hexdigest(),
    ) as staging:
        (staging / "sids.json").write_text(text, encoding="utf-8")
        link_or_copy(embedded / "embeddings.npy", staging / "embeddings.npy")
        link_or_copy(embedded / "item_ids.json", staging / "item_ids.json")
        if (embedded / EMBEDDING_FACTS).is_file():  # with which encoder further items are embedded
            link_or_copy(embedded / EMBEDDING_FACTS, staging / EMBEDDING_FACTS)
        save_quantizer(staging, quantised, experiment.sids.method, sizes, embeddings.shape[1])
        write_json(staging / "report.json", report)
        write_page(staging / "report.html", report, experiment.name)
        for row in [*quantised.log, {"stage": "sids", **report["collisions"]["after"]}]:
            append_log(staging / "log.jsonl", row)
    progress.unlink(missing_ok=True)
    append_log(final.parent / TIMING, {"stage": final.name, "seconds": seconds})
    return report | {"seconds": seconds}


# ------------------------------------------------------------------------------------------------
# Read


def read_embeddings(folder: Path, expected_ids: list[str]) -> np.ndarray:
    """``(N, D)`` float32, rows in the order of ``items.parquet``, mapped.

    Raises:
        UserError: the ids beside the embeddings are not the catalogue's, in its order.
    """
    ids = json.loads((folder / "item_ids.json").read_text(encoding="utf-8"))
    if ids != expected_ids:
        shorter = min(len(ids), len(expected_ids))
        at = next((row for row in range(shorter) if ids[row] != expected_ids[row]), shorter)
        found, wanted = ([*group, "nothing"][min(at, len(group))] for group in (ids, expected_ids))
        raise UserError(
            f"{folder / 'item_ids.json'}, row {at}: '{found}', expected '{wanted}' as in "
            f"items.parquet ({len(ids)} ids for {len(expected_ids)} items); delete {folder} and "
            "run `bash rqvae/rqvae.sh` again"
        )
    return map_array(folder / "embeddings.npy")


def unknown_tokens(folder: Path) -> float | None:
    """The share of the texts' tokens that the encoder did not know; None where nobody looked."""
    file = folder / EMBEDDING_FACTS
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    share: float | None = facts.get("unknown_tokens")
    return share


def read_given(
    path: Path, item_ids: list[str], settings_sizes: list[int]
) -> tuple[np.ndarray, list[int]]:
    """The codes that came with the data, and their codebook sizes.

    The sizes are ``sids.codebook_sizes`` if the codes fit into them, else the largest code of each
    level + 1 (said).

    Returns:
        ``(N, L)`` codes in the order of ``item_ids``, and K per level.

    Raises:
        UserError: no file, an item without codes, or codes that are not L whole numbers from 0 (the
            item is named).
    """
    if not path.is_file():
        raise UserError(
            f"{path}: not found, but sids.method is given; use data.source minionerec with a "
            "folder that holds an index.json, or another sids.method"
        )
    given = json.loads(path.read_text(encoding="utf-8"))
    missing = [item for item in item_ids if item not in given]
    if missing:
        raise UserError(
            f"{path}: item '{missing[0]}' has no codes ({len(missing)} items have none); "
            "add them, or use another sids.method"
        )
    length = len(given[item_ids[0]])
    for item in item_ids:
        if (
            len(given[item]) != length
            or not all(type(code) is int and code >= 0 for code in given[item])
            or not length
        ):
            raise UserError(
                f"{path}: item '{item}' has codes {given[item]}, expected {max(length, 1)} whole "
                "numbers from 0; mend the index, or use another sids.method"
            )
    codes = np.array([given[item] for item in item_ids], np.int64)
    largest = codes.max(axis=0)
    if len(settings_sizes) == length and (largest < settings_sizes).all():
        return codes, list(settings_sizes)
    sizes = (largest + 1).tolist()
    print(
        f"sids.codebook_sizes {settings_sizes} does not fit the given SIDs; their own sizes "
        f"{sizes} are used"
    )
    return codes, sizes


# ------------------------------------------------------------------------------------------------
# Quantise and write


def sizes_of(settings_sizes: list[int], num_items: int) -> list[int]:
    """K per level; for a 0 in ``sids.codebook_sizes`` a power of two that fits the catalogue.

    About sixteen items share a first code, which has at most 256 values as in the paper; then as
    many as it takes for four times more SIDs than items.

    >>> sizes_of([0, 0, 0], 600), sizes_of([0, 0, 0], 3686), sizes_of([64, 0, 0], 54)
    ([32, 32, 32], [256, 256, 256], [64, 8, 8])
    """
    fitting = 2 ** round(math.log2(max(num_items, 32) / 16))
    fitting = min(fitting, 256)
    while fitting ** len(settings_sizes) < 4 * num_items:
        fitting *= 2
    return [size or fitting for size in settings_sizes]


def quantise(
    experiment: Experiment,
    embeddings: np.ndarray,
    item_ids: list[str],
    data: Path,
    where: str,
    progress: Path,
) -> tuple[Quantised, list[int]]:
    """Codes before collisions are resolved, by ``sids.method``, and K per level.

    Args:
        where: the embeddings' file, for messages.
        progress: file that an interrupted RQ-VAE training continues from.

    Raises:
        UserError: the embeddings or the codebook sizes cannot work (``check_inputs``).
    """
    sids, seed, distinct = (
        experiment.sids,
        experiment.seed,
        experiment.sids.collision == "nearest_free",
    )
    sids = sids.changed({"codebook_sizes": sizes_of(sids.codebook_sizes, len(item_ids))})
    if sids.method == "given":
        codes, sizes = read_given(data / "given_sids.json", item_ids, sids.codebook_sizes)
        check_inputs(embeddings, item_ids, sizes, where, fitted=False, distinct=distinct)
        return from_codes(embeddings, codes, sizes), sizes
    sizes = list(sids.codebook_sizes)
    check_inputs(embeddings, item_ids, sizes, where, distinct=distinct)
    return fit_quantizer(embeddings, sids, seed, progress), sizes


def sids_json(sids: dict[str, Sid], sizes: list[int], method: str, embeddings_sha256: str) -> str:
    """The text of ``sids.json``, one item per line."""
    lines = ",\n".join(
        f"  {json.dumps(item, ensure_ascii=False)}: {json.dumps(list(sid))}"
        for item, sid in sids.items()
    )
    rest = json.dumps(
        {"codebook_sizes": sizes, "method": method, "embeddings_sha256": embeddings_sha256},
        indent=1,
    )
    return '{\n "sids": {\n' + lines + "\n },\n" + rest[2:] + "\n"


if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
