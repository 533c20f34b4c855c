"""Stage 1a: one vector per item from its text (``sids.text``), or from vectors of your own.

Section 3.1 of the MiniOneRec report, arXiv:2510.24431.

    accelerate launch rqvae/embed_items.py --config configs/quickstart.yaml
    accelerate launch rqvae/embed_items.py --config C --sids.encoder Qwen/Qwen3-Embedding-4B
    python rqvae/embed_items.py --config C --sids.embeddings vectors.parquet

Reads ``runs/<name>/data/items.parquet``; writes ``runs/<name>/embeddings``: ``embeddings.npy`` (N,
D) float32 with rows of length 1, ``item_ids.json`` (the order of the rows) and ``embeddings.json``
(model, digest of the texts).

Equal texts are embedded once, so that they get equal vectors. The texts are sorted by length and
cut into parts; every process takes every so-many-th part and writes it beside the final directory
as soon as it is done, so that an interrupted run continues with the parts that are missing, also
with another number of processes. Neither texts nor vectors are ever all in memory (``embeddings/``;
the output is memory-mapped part by part). The encoder's own pooling is used (mean for MiniLM, last
token for Qwen3-Embedding).

The texts and the encoder decide whether anything is embedded again: a data stage that was made anew
with the same texts keeps its embeddings, and another experiment in the same ``output_dir`` hands
its own on. Vectors of your own (``sids.embeddings``) are read anew every time.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

import contextlib
import hashlib
import json
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from minionerec.errors import UserError, one_line_errors, show
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import (
    fingerprints,
    link_or_copy,
    load_array,
    sha256_file,
    write_json,
)
from minionerec.experiment.lineage import (
    check_sources,
    open_stage,
    require_stage,
    require_unchanged,
    ways_out,
)
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import Parent, read_manifest, verify
from minionerec.experiment.run import is_main_process, run_stage, say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_difference, settings_of, stage_path
from rqvae.embeddings.encoder import (
    encode_with,
    encoder_digest,
    encoder_folder,
    load_encoder,
    text_lengths,
)
from rqvae.embeddings.language import language_warning, unknown_tokens
from rqvae.embeddings.own import beside_text, read_own_vectors
from rqvae.embeddings.parts import MOST_ITEMS_PER_PART, PARTS, embed_parts, join_parts
from rqvae.embeddings.texts import TextStore, open_texts, store_texts, texts_sha256

if TYPE_CHECKING:
    from accelerate import PartialState


def main(experiment: Experiment) -> None:
    """Embed every item of the experiment's catalogue, unless that was done before."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with contextlib.nullcontext() if alone else this_launch().main_process_first():
        if is_main_process() and not experiment.sids.embeddings:
            reuse(experiment, stage_path(experiment, "embeddings"))
    run_stage("embeddings", embed, experiment)


def embed(experiment: Experiment, final: Path) -> None:
    """Read, embed, commit; several processes share the texts."""
    data = open_stage(experiment, "data")
    started = time.perf_counter()
    items = data.path / "items.parquet"
    sources = sources_of(experiment)
    own = read_own(experiment, items)
    require_unchanged(sources)
    if own is not None and experiment.sids.embeddings_weight == 1:
        if is_main_process():
            write_own(experiment, final, data, own, sources, started)
        return
    state = this_launch()
    with state.main_process_first():  # fetched once, and before its revision names the parts
        encoder_folder(experiment.sids.encoder)
    scratch = scratch_folder(experiment, items, final)
    store, unknown = embed_texts(experiment, items, scratch, state)
    if state.is_main_process:
        write(experiment, final, data, store, scratch, own, unknown, sources, started)
        for parts in final.parent.glob(".embeddings.parts-*"):  # of other texts or encoders, too
            shutil.rmtree(parts)
    state.wait_for_everyone()


def this_launch() -> PartialState:
    """The processes of this launch; torch is imported once there is something to do.

    Without cpu=True several processes on CPUs would each believe to be alone. They wait for the
    slowest, however long.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))


def embed_texts(
    experiment: Experiment,
    items: Path,
    scratch: Path,
    state: PartialState,
) -> tuple[TextStore, float]:
    """Embed the texts of ``items.parquet`` into parts in ``scratch``.

    Continues where an interrupted run stopped.

    Returns:
        The texts, and the share of their tokens that the encoder does not know.
    """
    model = load_encoder(experiment, state.device)
    parts = experiment.sids.text
    if state.is_main_process:
        scratch.mkdir(parents=True, exist_ok=True)
        store_texts(items, parts, scratch, lambda texts: text_lengths(model, texts))
    state.wait_for_everyone()
    store = open_texts(scratch)
    unknown = unknown_tokens(model, store)
    if state.is_main_process:
        warning = language_warning(experiment.sids.encoder, unknown)
        if warning:
            show(warning)
    embed_parts(
        store,
        experiment.sids.encoder_tokens,
        scratch,
        encode_with(model),
        state.process_index,
        state.num_processes,
    )
    state.wait_for_everyone()
    return store, unknown.share


def read_own(experiment: Experiment, items: Path) -> np.ndarray | None:
    """The vectors of ``sids.embeddings`` in the order of ``items.parquet``, if there are any."""
    if not experiment.sids.embeddings:
        return None
    ids = pd.read_parquet(items, columns=["item_id"])["item_id"].tolist()
    return read_own_vectors(experiment.sids.embeddings, ids)


# ------------------------------------------------------------------------------------------------
# What is there already


def reuse(experiment: Experiment, final: Path) -> None:
    """Take over embeddings that need not be computed: another experiment's, or those of older data.

    Raises:
        UserError: as ``check_own``.
    """
    data = stage_path(experiment, "data")
    if final.exists():
        if not check_own(experiment, final, data):
            adopt(experiment, final)
        say(
            f"{final}: item embeddings are there already, made from these texts with this encoder; "
            "reused."
        )
        return
    source = other_experiment(experiment, data) if data.exists() else None
    if source is not None:
        with locked(final):
            commit_copy(experiment, source, final)
        say(
            f"{final}: item embeddings taken from {source}, "
            "which holds the same texts by the same encoder."
        )


def check_own(experiment: Experiment, final: Path, data: Path) -> bool:
    """Whether this experiment's embeddings name the data that is there as their parent.

    If not, they are at least of the same texts.

    Raises:
        UserError: the embeddings were made with other settings, from other texts, or by a folder
            that now holds another model.
    """
    manifest = verify(final)
    changed = settings_difference(manifest["settings"], settings_of(experiment, "embeddings"))
    now = encoder_digest(experiment.sids.encoder)
    before = embedding_facts(final).get("encoder_sha256", now)
    if before != now and before and now:  # "": a model of the hub that is not on this machine
        changed.append(f"files of sids.encoder: sha256 {before[:12]} -> {now[:12]}")
    if changed:
        raise UserError(
            f"{final}: was made with other settings ({'; '.join(changed)}); restore them, or "
            f"run again {ways_out(experiment, 'embeddings')}"
        )
    check_sources(final, manifest)
    if not data.exists():
        return True
    if read_manifest(data)["manifest_sha256"] in manifest["parents"].values():
        return True
    if not holds(experiment, final):
        raise UserError(
            f"{final}: was made from other items than {data} now holds; "
            "run `bash rqvae/rqvae.sh` with --redo embeddings"
        )
    return False


def embedding_facts(folder: Path) -> dict:
    """``embeddings.json``; empty if there is none."""
    file = folder / "embeddings.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def holds(experiment: Experiment, folder: Path) -> bool:
    """Whether embeddings are of just the experiment's texts and ids, in this order."""
    items = require_stage(experiment, "data") / "items.parquet"
    wanted = texts_sha256(items, experiment.sids.text)
    if embedding_facts(folder).get("texts_sha256") != wanted:
        return False
    ids = pd.read_parquet(items, columns=["item_id"])["item_id"].tolist()
    return ids == json.loads((folder / "item_ids.json").read_text(encoding="utf-8"))


def other_experiment(experiment: Experiment, data: Path) -> Path | None:
    """Embeddings of an experiment beside this one that are what this one would make.

    Damaged ones are passed over.
    """
    wanted = {
        "encoder": experiment.sids.encoder,
        "encoder_sha256": encoder_digest(experiment.sids.encoder),
    }
    for folder in sorted(Path(experiment.output_dir).glob("*/embeddings")):
        with contextlib.suppress(UserError):
            settings = verify(folder)["settings"]
            same = wanted.items() <= embedding_facts(folder).items() and settings == settings_of(
                experiment, "embeddings"
            )
            if same and holds(experiment, folder):
                return folder
    return None


def adopt(experiment: Experiment, final: Path) -> None:
    """Commit the same embeddings again, as made from the data that is there now."""
    renewed, old = final.with_name(".embeddings.renewed"), final.with_name(".embeddings.parts-old")
    with locked(final):
        for leftover in (renewed, old):
            shutil.rmtree(leftover, ignore_errors=True)
        commit_copy(experiment, final, renewed)
        os.rename(final, old)
        os.rename(renewed, final)
        shutil.rmtree(old)


def commit_copy(experiment: Experiment, source: Path, final: Path) -> None:
    """Commit embeddings that are there already under another name or with another parent.

    The files are shared.
    """
    data = open_stage(experiment, "data")
    settings = settings_of(experiment, "embeddings")
    sources = read_manifest(source).get("sources", {})
    with committed(final, "embeddings", settings, [data], sources=sources) as staging:
        for name in ("embeddings.npy", "item_ids.json", "embeddings.json"):
            link_or_copy(source / name, staging / name)


def scratch_folder(experiment: Experiment, items: Path, final: Path) -> Path:
    """Where parts wait; its name says what they must agree on to be used.

    Items, encoder, and what decides their order.
    """
    settings = [
        sha256_file(items),
        experiment.sids.text,
        experiment.sids.encoder,
        encoder_digest(experiment.sids.encoder),
        experiment.sids.max_text_tokens,
        PARTS,
        MOST_ITEMS_PER_PART,
    ]
    return final.with_name(
        f".embeddings.parts-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    )


# ------------------------------------------------------------------------------------------------
# Output


def write(
    experiment: Experiment,
    final: Path,
    data: Parent,
    store: TextStore,
    scratch: Path,
    own: np.ndarray | None,
    unknown: float,
    sources: dict[str, Any],
    started: float,
) -> None:
    """Commit ``runs/<name>/embeddings`` and say what was made."""
    settings = settings_of(experiment, "embeddings")
    with committed(final, "embeddings", settings, [data], sources=sources) as staging:
        file = staging / "embeddings.npy"
        num_items, width = join_parts(store, scratch, file)
        if own is not None:
            joined = beside_text(own, load_array(file), experiment.sids.embeddings_weight)
            np.save(file, joined.astype(np.float32), allow_pickle=False)
            width = joined.shape[1]
        write_ids(staging / "item_ids.json", data.path / "items.parquet")
        write_json(
            staging / "embeddings.json",
            {
                "encoder": experiment.sids.encoder,
                "encoder_sha256": encoder_digest(experiment.sids.encoder),
                "texts_sha256": store.sha256,
                "items": num_items,
                "distinct_texts": len(store.first),
                "unknown_tokens": round(unknown, 6),
                "width": width,
            },
        )
    seconds = time.perf_counter() - started
    print(
        f"{num_items} items embedded into {width} numbers each in {seconds:.0f} s "
        f"({num_items / seconds:.0f} items/s)"
    )


def write_own(
    experiment: Experiment,
    final: Path,
    data: Parent,
    own: np.ndarray,
    sources: dict[str, Any],
    started: float,
) -> None:
    """Commit vectors of your own as ``runs/<name>/embeddings`` and say so."""
    settings = settings_of(experiment, "embeddings")
    with committed(final, "embeddings", settings, [data], sources=sources) as staging:
        np.save(staging / "embeddings.npy", own, allow_pickle=False)
        write_ids(staging / "item_ids.json", data.path / "items.parquet")
        facts = {"encoder": "", "items": len(own), "width": own.shape[1]}
        write_json(staging / "embeddings.json", facts)
    seconds = time.perf_counter() - started
    say(
        f"{len(own)} vectors of {own.shape[1]} numbers taken from {experiment.sids.embeddings} in "
        f"{seconds:.0f} s"
    )


def sources_of(experiment: Experiment) -> dict[str, Any]:
    """The fingerprints of the encoder's folder and the file of own vectors, for the manifest."""
    s = experiment.sids
    paths = [Path(s.embeddings)] if s.embeddings else []
    reads_texts = not s.embeddings or s.embeddings_weight < 1
    if reads_texts and Path(s.encoder).is_dir():
        paths.append(Path(s.encoder))
    return fingerprints(path for path in paths if path.exists())


def write_ids(path: Path, items: Path) -> None:
    """``item_ids.json``, as ``write_json`` would write the list, without holding it."""
    with open(path, "w", encoding="utf-8") as handle:
        before = "[\n "
        for item in pd.read_parquet(items, columns=["item_id"])["item_id"]:
            handle.write(before + json.dumps(item, ensure_ascii=False))
            before = ",\n "
        handle.write("\n]\n")


if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
