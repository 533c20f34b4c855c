"""The table item -> codes: its file, its checks, its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from minionerec.catalogue.compact import IntRows
from minionerec.catalogue.plain_sids import read_plain_sids
from minionerec.errors import UserError
from minionerec.experiment.files import read_json

SIDS_FILE = "sids.json"
LEVELS = "abcdefghijklmnopqrstuvwxyz"
MOST_CODES = 2**20  # of a level; each is a token


@dataclass(frozen=True)
class SidTable:
    """The SID of every item, in the order of the item indexes.

    ``codes`` may differ in length between items (``collision: extra_level``), but no SID is the
    beginning of another.
    """

    item_ids: list[str]
    codes: Sequence[tuple[int, ...]]
    codebook_sizes: list[int]
    sha256: str
    path: Path = Path(SIDS_FILE)  # where it was read from, for messages
    raw: bytes = b""  # the file's bytes: what a checkpoint carries, whatever is on the disk later

    def tokens(self) -> list[str]:
        """Every SID token of every level, ``<a_0> <a_1> ... <b_0> ...``, used by an item or not."""
        tokens = []
        for level, size in enumerate(self.codebook_sizes):
            tokens += [f"<{LEVELS[level]}_{code}>" for code in range(size)]
        return tokens

    @cached_property
    def table(self) -> np.ndarray:
        """``(N, L)`` int32 codes, -1 behind shorter SIDs."""
        return IntRows.of(self.codes).table

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> IntRows:
        """Each item's SID as token ids.

        Raises:
            UserError: the tokenizer does not know a SID token: it belongs to another catalogue.
        """
        levels = self.level_token_ids(tokenizer)
        found = np.empty_like(self.table)
        for level, column in enumerate(self.table.T):
            # The last entry is for -1: behind a shorter SID there is no token either
            tokens = np.array([*levels[level], -1], dtype=np.int32)
            found[:, level] = tokens[column]
        return IntRows(found)

    def level_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """For each level, the token id of each of its codes."""
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in self.tokens() if token not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer lacks {len(missing)} SID tokens ({missing[0]}, ...): this model "
                f"was trained on other SIDs than {self.sha256[:12]}; run the stage that trained "
                "it again"
            )
        levels = []
        for level, size in enumerate(self.codebook_sizes):
            levels.append([vocabulary[f"<{LEVELS[level]}_{code}>"] for code in range(size)])
        return levels


def load_sids(path: Path, item_ids: Sequence[str] | None = None) -> SidTable:
    """Read and check ``sids.json``.

    Args:
        path: the file.
        item_ids: the catalogue whose order the table takes; the file's own order by default.

    Raises:
        UserError: naming the item and the value for anything that is not a valid SID of a known
            item.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} not found; run `bash rqvae/rqvae.sh` with the same --config first"
        ) from None
    return _plain(path, raw, item_ids) or _any(path, raw, item_ids)


def _plain(path: Path, raw: bytes, item_ids: Sequence[str] | None) -> SidTable | None:
    """The table of a file as nearly all are; None if it has to be read word by word.

    That is also where mistakes are named: nothing is refused here.
    """
    found = read_plain_sids(raw)
    if found is None:
        return None
    sizes = found.content.get("codebook_sizes")
    if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
        return None
    table = found.codes.table
    levels = table.shape[1]
    if not levels <= len(sizes) <= len(LEVELS) or not all(
        1 <= size <= MOST_CODES for size in sizes
    ):
        return None
    if (table.max(axis=0) >= sizes[:levels]).any() or _has_prefix(table):
        return None
    order = found.item_ids if item_ids is None else list(item_ids)
    if order != found.item_ids:
        index = {item_id: place for place, item_id in enumerate(found.item_ids)}
        places = [index.get(item_id, -1) for item_id in order]
        if len(order) != len(index) or min(places) < 0:
            return None
        table = table[places]
    return SidTable(order, IntRows(table), sizes, hashlib.sha256(raw).hexdigest(), path, raw)


def _has_prefix(table: np.ndarray) -> bool:
    """Whether a SID is the beginning of another: ``(N, L)`` codes, -1 behind shorter ones."""
    if (table[:, -1] >= 0).all():
        return False
    ordered = table[np.lexsort(table.T[::-1])]
    upper, lower = ordered[:-1], ordered[1:]
    # A beginning stands right above what begins with it: they differ only where it has ended
    differs = upper != lower
    return bool((differs.any(axis=1) & (~differs | (upper < 0)).all(axis=1)).any())


def _any(path: Path, raw: bytes, item_ids: Sequence[str] | None) -> SidTable:
    """The table of any file, word by word.

    Raises:
        UserError: as ``load_sids``.
    """
    try:
        content = read_json(raw)
        sids = dict(content["sids"])
        sizes = [int(size) for size in content["codebook_sizes"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: is not a SID file ({type(error).__name__}: {error}); expected the keys sids "
            "and codebook_sizes"
        ) from None
    if not 1 <= len(sizes) <= len(LEVELS) or not all(1 <= size <= MOST_CODES for size in sizes):
        raise UserError(
            f"{path}: codebook_sizes: got {str(sizes)[:60]}, expected 1 to {len(LEVELS)} whole "
            f"numbers from 1 to {MOST_CODES:,}"
        )
    order = list(sids) if item_ids is None else list(item_ids)
    for item_id in order:
        if item_id not in sids:
            raise UserError(
                f"{path}: item '{item_id}' of the catalogue has no SID; run `bash rqvae/rqvae.sh` "
                "again"
            )
    if len(order) != len(sids):
        known = set(order)
        surplus = next(item_id for item_id in sids if item_id not in known)
        raise UserError(
            f"{path}: item '{surplus}' is not in the catalogue ({len(sids)} SIDs, {len(order)} "
            "items); run `bash rqvae/rqvae.sh` again"
        )
    codes = [_checked(path, item_id, sids[item_id], sizes) for item_id in order]
    _check_prefix_free(path, order, codes)
    return SidTable(order, IntRows.of(codes), sizes, hashlib.sha256(raw).hexdigest(), path, raw)


def _checked(path: Path, item_id: str, codes: object, sizes: list[int]) -> tuple[int, ...]:
    if not isinstance(codes, list) or not 1 <= len(codes) <= len(sizes):
        raise UserError(
            f"{path}: item '{item_id}': got {codes!r}, expected a list of 1 to {len(sizes)} codes"
        )
    for level, (code, size) in enumerate(zip(codes, sizes, strict=False)):
        if type(code) is not int or not 0 <= code < size:
            raise UserError(
                f"{path}: item '{item_id}', level {level}: got {code!r}, expected a whole number "
                f"from 0 to {size - 1}"
            )
    return tuple(codes)


def _check_prefix_free(path: Path, item_ids: list[str], codes: list[tuple[int, ...]]) -> None:
    ordered = sorted(zip(codes, item_ids, strict=True))
    for (shorter, first), (longer, second) in zip(ordered, ordered[1:], strict=False):
        if len(shorter) < len(longer) and longer[: len(shorter)] == shorter:
            raise UserError(
                f"{path}: the SID of item '{first}' {list(shorter)} is the beginning of item "
                f"'{second}' {list(longer)}; give both the same number of levels"
            )
