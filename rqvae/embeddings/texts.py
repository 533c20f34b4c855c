"""The texts of a catalogue in a scratch folder, so that a million need no memory.

They are streamed from ``items.parquet``.

``texts.bin`` holds the cleaned texts end to end (UTF-8); ``texts.npz`` says where each begins, how
many tokens it has and which items have equal ones. What a catalogue takes in memory is some 300
bytes per item at the peak (measured: benchmarks/embeddings.py).

Shapes: N items, U distinct texts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minionerec.catalogue.item_text import item_texts
from minionerec.errors import UserError
from minionerec.experiment.files import fsync

BATCH_ITEMS = 4096
DIGEST_BYTES = 16


@dataclass(frozen=True)
class TextStore:
    """Distinct texts on disk.

    Attributes:
        file: ``texts.bin``.
        offsets: ``(N + 1,)`` where the text of each item begins in it, and where the last one ends.
        tokens: ``(U,)`` length of each distinct text in tokens, after truncation.
        digests: ``(U, 16)`` uint8, of each distinct text.
        first: ``(U,)`` the first item with that text.
        text_of_item: ``(N,)`` number of each item's distinct text.
        sha256: of all texts in item order: the same texts give the same embeddings.
    """

    file: Path
    offsets: np.ndarray
    tokens: np.ndarray
    digests: np.ndarray
    first: np.ndarray
    text_of_item: np.ndarray
    sha256: str

    def read(self, numbers: np.ndarray) -> list[str]:
        """The distinct texts with these numbers.

        Raises:
            UserError: one is not what was written.
        """
        with open(self.file, "rb") as handle:
            found = [self._bytes(handle, int(self.first[number])) for number in numbers]
        for number, content in zip(numbers, found, strict=True):
            if digest_of(content) != self.digests[number].tobytes():
                raise UserError(
                    f"{self.file}: was changed since it was written; delete {self.file.parent} and "
                    "run the same command again"
                )
        return [content.decode() for content in found]

    def _bytes(self, handle: BinaryIO, item: int) -> bytes:
        handle.seek(self.offsets[item])
        return handle.read(self.offsets[item + 1] - self.offsets[item])


def store_texts(
    items: Path,
    text_parts: Sequence[str],
    folder: Path,
    count_tokens: Callable[[list[str]], list[int]],
) -> TextStore:
    """Write the store into ``folder``, or open the one that an interrupted run left there.

    Args:
        items: ``items.parquet``.
        text_parts: ``sids.text``.
        folder: where the store is.
        count_tokens: lengths of texts in tokens.
    """
    if not (folder / "texts.npz").exists():
        # arrays: a list of numbers is 36 bytes each
        sizes: list[np.ndarray] = []
        tokens: list[np.ndarray] = []
        digests: list[np.ndarray] = []
        with open(folder / "texts.bin", "wb") as handle:
            for _, texts in read_items(items, text_parts):
                sizes.append(np.array([handle.write(text.encode()) for text in texts], np.int64))
                tokens.append(np.array(count_tokens(texts), np.int32))
                digests.append(digests_of(texts))
        write_index(folder, np.concatenate(sizes), np.concatenate(tokens), np.concatenate(digests))
    return open_texts(folder)


def write_index(folder: Path, sizes: np.ndarray, tokens: np.ndarray, digests: np.ndarray) -> None:
    """Write ``texts.npz`` from bytes (N,), tokens (N,) and digests (N, 16) of all items' texts."""
    offsets = np.concatenate([[0], sizes.cumsum()])
    _, first, text_of_item = np.unique(
        digests.view(np.uint64), axis=0, return_index=True, return_inverse=True
    )
    sha256 = hashlib.sha256(digests.tobytes()).hexdigest()
    fsync(folder / "texts.bin")
    with open(folder / ".texts.npz", "wb") as handle:
        np.savez(
            handle,
            offsets=offsets,
            tokens=tokens[first],
            digests=digests[first],
            first=first,
            text_of_item=text_of_item.ravel(),
            sha256=sha256,
        )
    fsync(folder / ".texts.npz")
    os.replace(folder / ".texts.npz", folder / "texts.npz")


def open_texts(folder: Path) -> TextStore:
    """The store that ``store_texts`` wrote, maybe in another process."""
    with np.load(folder / "texts.npz", allow_pickle=False) as saved:
        names = ("offsets", "tokens", "digests", "first", "text_of_item")
        arrays = {name: saved[name] for name in names}
        return TextStore(folder / "texts.bin", **arrays, sha256=str(saved["sha256"]))


def texts_sha256(items: Path, text_parts: Sequence[str]) -> str:
    """``TextStore.sha256`` of a catalogue, without storing anything."""
    digest = hashlib.sha256()
    for _, texts in read_items(items, text_parts):
        digest.update(digests_of(texts).tobytes())
    return digest.hexdigest()


def digests_of(texts: list[str]) -> np.ndarray:
    """``(len(texts), 16)`` uint8 BLAKE2b digests."""
    joined = b"".join(digest_of(text.encode()) for text in texts)
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)


def digest_of(text: bytes) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def read_items(path: Path, text_parts: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and texts of some thousand items at a time.

    Args:
        path: ``items.parquet``.
        text_parts: ``sids.text``, what the texts are made of.

    Raises:
        UserError: an item has no text (its row and id are named).
    """
    import pyarrow.parquet as pq

    row = 0
    columns = ["item_id", *text_parts]
    with pq.ParquetFile(path, buffer_size=2**20) as file:  # else a whole row group is held
        for batch in file.iter_batches(BATCH_ITEMS, columns=columns):
            cells = {name: batch.column(name).to_pylist() for name in columns}
            texts = item_texts(cells, text_parts)
            if "" in texts:
                bad = texts.index("")
                raise UserError(
                    f"{path.name}, row {row + bad}, item '{cells['item_id'][bad]}': "
                    f"{' and '.join(text_parts)} hold no text; give the item a title, or drop it, "
                    "and run `bash data/prepare.sh` again"
                )
            yield cells["item_id"], texts
            row += len(texts)
