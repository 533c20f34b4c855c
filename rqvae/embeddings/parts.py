"""Vectors in parts: each whole on disk under its name, and what it was when it was written.

A part's name holds a digest of its number, of the run that it belongs to and of its content, so
that a part that was changed, exchanged for another or taken from another run is not one: it is
deleted and made again.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from minionerec.errors import UserError
from minionerec.experiment.files import fsync
from minionerec.experiment.progress import Progress
from rqvae.embeddings.texts import TextStore

# Enough parts to keep processes busy, small enough to lose one.
PARTS = 64
MOST_ITEMS_PER_PART = 1024


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
    """Make this process's parts that are not there yet.

    Each is whole as soon as it has its name.
    """
    parts = plan_parts(store.tokens)
    files = files_of_parts(folder)
    missing = []
    for number in range(process, len(parts), num_processes):
        if read_part(folder, number, len(parts[number]), files) is None:
            missing.append(number)
    total = sum(len(parts[number]) for number in missing)
    with Progress("embedding", total, "texts") as bar:
        for number in missing:
            rows = []
            for batch in plan_batches(parts[number], store.tokens, token_budget):
                rows.append(encode(store.read(batch)))
                bar.update(len(batch))
            write_part(folder, number, np.concatenate(rows))


def write_part(folder: Path, number: int, rows: np.ndarray) -> None:
    """Keep the ``(n, D)`` vectors of one part."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    content = buffer.getvalue()
    temporary = folder / f".part-{number}.npy"
    temporary.write_bytes(content)
    fsync(temporary)
    os.replace(temporary, folder / f"part-{number}.{_digest(folder, number, content)}.npy")


def files_of_parts(folder: Path) -> dict[str, list[Path]]:
    """What may be parts, by the beginning of the name.

    One listing: looking for every part anew takes time that grows with their number squared.
    """
    files: dict[str, list[Path]] = {}
    for file in folder.glob("part-*.npy"):
        files.setdefault(file.name.split(".")[0], []).append(file)
    return files


def read_part(
    folder: Path,
    number: int,
    num_rows: int,
    files: Mapping[str, Sequence[Path]],
) -> np.ndarray | None:
    """The ``(n, D)`` vectors of one part; None if it is not among ``files_of_parts``.

    A file that is not what was written as this part of this run is deleted and not there.
    """
    for file in files.get(f"part-{number}", []):
        content = file.read_bytes()
        if file.name.split(".")[1] == _digest(folder, number, content):
            rows = np.load(io.BytesIO(content), allow_pickle=False)
            if len(rows) == num_rows:
                return rows
        file.unlink()
    return None


def _digest(folder: Path, number: int, content: bytes) -> str:
    """Of a part's content, its number and its run, which the folder's name stands for."""
    digest = hashlib.sha256(f"{folder.name} {number} ".encode())
    digest.update(content)
    return digest.hexdigest()[:16]


def join_parts(store: TextStore, folder: Path, target: Path) -> tuple[int, int]:
    """Write ``target``, (N, D) in the order of the items, and return its shape.

    The file is mapped anew for every part, so that what was written does not stay in memory.

    Raises:
        UserError: NaN or infinite values (the first item in the order of the parts is named by its
            row), or a part that was changed since it was made.
    """
    # the items of text u: items[start[u]:start[u + 1]]
    items = np.argsort(store.text_of_item, kind="stable")
    start = np.searchsorted(store.text_of_item[items], np.arange(len(store.first) + 1))
    files = files_of_parts(folder)
    width = 0
    for number, part in enumerate(plan_parts(store.tokens)):
        rows = read_part(folder, number, len(part), files)
        if rows is None:
            raise UserError(
                f"{folder}: part {number} is missing or was changed since it was made; run the "
                "same command again, what is whole is kept"
            )
        bad = part[~np.isfinite(rows).all(axis=1)]
        if len(bad):
            raise UserError(
                f"sids.encoder: gave NaN or infinite values for {len(bad)} texts, first that of "
                f"row {store.first[bad[0]]} of items.parquet; use another encoder or look at the "
                "item's text"
            )
        if not width:
            width = rows.shape[1]
            shape = (len(items), width)
            np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape).flush()
        copies = start[part + 1] - start[part]
        spans = zip(start[part], start[part + 1], strict=True)
        wanted = np.concatenate([items[first:last] for first, last in spans])
        np.load(target, mmap_mode="r+")[wanted] = np.repeat(rows, copies, axis=0)
    return len(items), width
