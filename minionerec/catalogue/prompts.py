"""The one place where prompts are made.

SFT, RL, evaluation and serving all render through ``Renderer``; the wording is that of a template
(``minionerec/catalogue/templates.py``).

A prompt is ``before + content + after`` with ``content`` the history or the one item shown. Its
token ids are those of one tokenizer call on the whole text, yet every piece (wording, SID, title)
is tokenised once for the whole run: pieces are cut only where tokenizers cut, beside a SID token
and in front of a single space. ``Renderer.prompt`` is given only what a model may see, so no
wording can leak the target (the reference appends the answer to its title -> SID prompts).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from minionerec.catalogue.compact import IntLists, IntRows
from minionerec.catalogue.item_text import Stripped, item_texts
from minionerec.catalogue.templates import Template
from minionerec.errors import UserError
from minionerec.experiment.shared import made_once

MAX_DESCRIPTION_TOKENS = 128  # the part of a description that a prompt shows
SEQUENCE_TASKS = ("sid_to_sid", "sids_to_title", "titles_to_sid")  # that show several items
TEXTS_AT_ONCE = 4096  # that are tokenised together
KEPT_PIECES = 200_000  # of SIDs, as lists
CHECKED_PROMPTS = (
    32  # of each task, whose pieces are compared with the tokenizer's answer for the whole text
)


class ItemPieces(NamedTuple):
    """Which pieces of all items are meant: tasks share them."""

    kind: str  # name, description, or completion: the title that a model must write
    lead: str = ""  # in front of an item's text
    tail: str = ""  # and behind it


COMPLETIONS = ItemPieces("completion")


class Renderer:
    """Item indexes to token ids.

    Args:
        tokenizer: of the backbone, SID tokens included.
        template: wording.
        sid_token_ids: the SID of each item as token ids, by item index.
        items: ``title`` and ``description`` by item index, and what ``shown`` names.
        max_tokens: prompt and completion together; longer rows lose their oldest history items.
        shown: columns that stand for an item where a prompt names it by its title.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        sid_token_ids: Sequence[Sequence[int]],
        items: pd.DataFrame,
        max_tokens: int,
        shown: Sequence[str] = ("title",),
    ):
        self.template = template
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._sids = IntRows.of(sid_token_ids)
        self._items = items
        self._shown = shown
        self._eos = [tokenizer.eos_token_id]
        self._bos: list[int] = []
        if tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == (
            tokenizer.bos_token_id
        ):
            self._bos = [tokenizer.bos_token_id]
        elif "" in template.before.values():
            # A prompt may be empty of wording, and a model needs one token to start from.
            self._bos = self._eos
        self._pieces = cache(self._tokenize_pieces)
        self._pieces_are_exact = cache(self._check_pieces)
        self._of_items: dict[ItemPieces, IntLists] = {}
        self._longest_completion = cache(self._find_longest_completion)
        # A large catalogue's SIDs stay one table; lists are made of those that are asked for
        self._sid_piece = lru_cache(KEPT_PIECES)(self._make_sid_piece)
        self._sid_completion = lru_cache(KEPT_PIECES)(self._make_sid_completion)

    def prepare(self, tasks: Iterable[str]) -> None:
        """Tokenise what rows of these tasks show of items, for all processes of a machine at once.

        All processes of a launch ask together; without it each tokenises what it comes across.
        """
        wanted: dict[ItemPieces, None] = {}  # tasks share many
        for task in tasks:
            if task.endswith("title"):
                wanted[COMPLETIONS] = None
            if self._shows_texts(task):
                for place in ("middle", "last") if task in SEQUENCE_TASKS else ("last",):
                    wanted[self._item_pieces_of(task, place)] = None
        missing = [pieces for pieces in wanted if pieces not in self._of_items]

        def arrays() -> list[np.ndarray]:
            found = []
            for pieces in missing:
                lists = self._tokenize_item_pieces(pieces)
                found += [lists.flat, lists.starts]
            return found

        made = made_once(arrays)
        for number, pieces in enumerate(missing):
            self._of_items[pieces] = IntLists(made[2 * number], made[2 * number + 1])

    def has_description(self, item: int) -> bool:
        """Whether ``description_to_sid`` has anything to show for this item."""
        return bool(self._descriptions[item])

    def text(self, task: str, shown: Sequence[int]) -> str:
        """The prompt as people read it, nothing dropped.

        ``prompt`` is its token ids behind the start token, if there is one.
        """
        if self._shows_texts(task):
            texts = self._texts(task)
            content = [texts[item] for item in shown]
        else:
            content = ["".join(self._sid_tokens(item)) for item in shown]
        return (
            self.template.before[task]
            + self._separator(task).join(content)
            + self.template.after[task]
        )

    def prompt(self, task: str, shown: Sequence[int]) -> list[int]:
        """Token ids of the prompt that shows these items (oldest first) and nothing else.

        Raises:
            UserError: not even the latest item fits into ``max_tokens``.
        """
        room = self.max_tokens - self._longest_completion(task.endswith("title"))
        if shown and self._pieces_are_exact(task):
            ids = self._from_pieces(task, shown, room)
        else:
            ids = self._whole(task, shown)
            while len(ids) > room and len(shown) > 1:
                shown = shown[1:]
                ids = self._whole(task, shown)
        if len(ids) > room:
            raise UserError(
                f"model.max_tokens: a '{task}' prompt needs {self.max_tokens - room + len(ids)} "
                f"tokens, the limit is {self.max_tokens}; raise it"
            )
        return ids

    def every_item_fits(self, task: str) -> bool:
        """Whether no prompt that shows a single item is longer than the limit."""
        room = self.max_tokens - self._longest_completion(task.endswith("title"))
        if not self._pieces_are_exact(task):
            return all(self._fits(task, item, room) for item in range(len(self._sids)))
        before = self._pieces(task, "before")[0]
        if task.startswith("sid"):
            longest = self._sids.table.shape[1] + len(self._pieces(task, "last")[0])
        else:
            longest = self._pieces(task, "last").longest()
        return len(before) + longest <= room

    def _fits(self, task: str, item: int, room: int) -> bool:
        return len(self._whole(task, (item,))) <= room

    def start(self, text: str) -> list[int]:
        """Token ids of any text where a prompt begins; SID tokens in it are tokens."""
        return self._bos + self._encode(text)

    def completion(self, task: str, target: int) -> list[int]:
        """Token ids that the model must produce, end-of-sequence included.

        The list is shared: do not change it.
        """
        if task.endswith("title"):
            return self._pieces_of_items(COMPLETIONS)[target]
        return self._sid_completion(target)

    def _whole(self, task: str, shown: Sequence[int]) -> list[int]:
        return self._bos + self._encode(self.text(task, shown), as_text=self._shows_texts(task))

    def _from_pieces(self, task: str, shown: Sequence[int], room: int) -> list[int]:
        """The prompt put together from pieces, without the oldest items if they do not fit."""
        before = self._pieces(task, "before")[0]
        last = self._piece(task, "last", shown[-1])
        pieces = [self._piece(task, "middle", item) for item in shown[:-1]]
        length = len(before) + sum(map(len, pieces)) + len(last)
        while length > room and pieces:
            length -= len(pieces.pop(0))
        ids = before
        for piece in pieces:
            ids += piece
        ids += last
        return ids

    def _piece(self, task: str, place: str, item: int) -> list[int]:
        """Token ids of one item in the middle or at the end of what a prompt shows."""
        if task.startswith("sid"):
            return self._sid_piece(task, place, item)
        return self._pieces(task, place)[item]

    def _make_sid_piece(self, task: str, place: str, item: int) -> list[int]:
        return [*self._sids[item], *self._pieces(task, place)[0]]

    def _make_sid_completion(self, item: int) -> list[int]:
        return [*self._sids[item], *self._eos]

    def _tokenize_pieces(self, task: str, place: str) -> IntLists:
        """Token ids of a task's pieces.

        One for ``before``; for ``middle`` and ``last`` one per item, or what follows any SID.

        A space in front of an item's text belongs to the item's piece.
        """
        if place == "before":
            wording = self.template.before[task].removesuffix(self._lead(task))
            return IntLists.of([self._bos + self._encode(wording, self._shows_texts(task))])
        if self._shows_texts(task):
            return self._pieces_of_items(self._item_pieces_of(task, place))
        return self._tokenize_behind(self._sid_tokens(0)[-1], [self._tail(task, place)], False)

    def _lead(self, task: str) -> str:
        """What a piece begins with in front of an item's text."""
        spaces = self.template.before[task].endswith(" ") and self._separator(task).endswith(" ")
        return " " if spaces and self._shows_texts(task) else ""

    def _tail(self, task: str, place: str) -> str:
        """What follows an item in its piece."""
        if place == "last":
            return self.template.after[task]
        return self._separator(task).removesuffix(self._lead(task))

    def _item_pieces_of(self, task: str, place: str) -> ItemPieces:
        kind = "description" if task == "description_to_sid" else "name"
        return ItemPieces(kind, self._lead(task), self._tail(task, place))

    def _pieces_of_items(self, pieces: ItemPieces) -> IntLists:
        if pieces not in self._of_items:
            self._of_items[pieces] = self._tokenize_item_pieces(pieces)
        return self._of_items[pieces]

    def _check_pieces(self, task: str) -> bool:
        """Whether pieces give the ids of the whole text, tried on prompts from everywhere.

        False for wording that leaves no place to cut and for tokenizers that merge across spaces:
            their prompts are tokenised whole.
        """
        several = 4 if task in SEQUENCE_TASKS else 1
        step = max(1, len(self._sids) // (CHECKED_PROMPTS * several))
        items = range(0, len(self._sids), step)
        for number in range(CHECKED_PROMPTS):
            start = number * several
            shown = items[start : start + several]
            if not shown:
                break
            if self._whole(task, shown) != self._from_pieces(task, shown, sys.maxsize):
                return False
        return True

    def _tokenize_item_pieces(self, pieces: ItemPieces) -> IntLists:
        """Every item's text between what stands before and behind it."""
        if pieces == COMPLETIONS:
            encoded = self._encoded(self._titles, as_text=True)
            return IntLists.of(ids + self._eos for ids in encoded)
        texts = self._shortened if pieces.kind == "description" else self._named
        between = (f"{pieces.lead}{text}{pieces.tail}" for text in texts)
        return self._tokenize_behind("x", between, True)

    def _tokenize_behind(self, start: str, texts: Iterable[str], as_text: bool) -> IntLists:
        """Texts as they are tokenised inside a prompt.

        Some tokenizers treat the beginning of a text differently.
        """
        skip = len(self._encode(start, as_text))
        behind = (start + text for text in texts)
        encoded = self._encoded(behind, as_text)
        return IntLists.of(ids[skip:] for ids in encoded)

    def _find_longest_completion(self, of_titles: bool) -> int:
        if of_titles:
            return self._pieces_of_items(COMPLETIONS).longest()
        return self._sids.table.shape[1] + len(self._eos)

    def _encoded(self, texts: Iterable[str], as_text: bool) -> Iterator[list[int]]:
        """Token ids of many texts; what a tokenizer keeps beside the ids is never there of all."""
        remaining = iter(texts)
        while some := list(itertools.islice(remaining, TEXTS_AT_ONCE)):
            yield from self._encode_all(some, as_text)

    def _encode_all(self, texts: list[str], as_text: bool = False) -> list[list[int]]:
        """Token ids; ``as_text`` takes a special token that is written out in a title as text.

        Otherwise `<|endoftext|>` in a title would be the end of the sequence.
        """
        if self._tokenizer.is_fast:
            # Twice as fast as through transformers, which makes more of a text than its ids
            backend = self._tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = as_text
            found = backend.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=as_text,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return encoded["input_ids"]

    def _encode(self, text: str, as_text: bool = False) -> list[int]:
        return self._encode_all([text], as_text)[0] if text else []

    def _separator(self, task: str) -> str:
        return (
            self.template.sid_separator if task.startswith("sid") else self.template.title_separator
        )

    def _shows_texts(self, task: str) -> bool:
        """Whether a task shows texts of items, not their SIDs."""
        return not task.startswith("sid")

    def _texts(self, task: str) -> Sequence[str]:
        """What a task that shows texts shows of each item."""
        return self._shortened if task == "description_to_sid" else self._named

    def _sid_tokens(self, item: int) -> list[str]:
        return self._tokenizer.convert_ids_to_tokens(list(self._sids[item]))

    # Texts are made when a task first shows them: a search over SIDs never does

    @cached_property
    def _titles(self) -> Stripped:
        return Stripped(self._items["title"])

    @cached_property
    def _named(self) -> Sequence[str]:
        """What stands for an item where a prompt names it."""
        # Of the title alone the text as it is: it was cleaned when it was prepared
        return self._titles if len(self._shown) == 1 else item_texts(self._items, self._shown)

    @cached_property
    def _descriptions(self) -> Stripped:
        return Stripped(self._items["description"])

    @cached_property
    def _shortened(self) -> list[str]:
        """Descriptions cut to at most ``MAX_DESCRIPTION_TOKENS`` tokens."""
        encoded = self._encoded(self._descriptions, as_text=True)
        shortened = []
        for text, ids in zip(self._descriptions, encoded, strict=True):
            if len(ids) > MAX_DESCRIPTION_TOKENS:
                text = self._cut(text, ids)
            shortened.append(text)
        return shortened

    def _cut(self, text: str, ids: list[int]) -> str:
        """The beginning of a text.

        Its own ids are counted, as a cut word may take more tokens than it had.
        """
        length = len(self._tokenizer.decode(ids[:MAX_DESCRIPTION_TOKENS]))
        while (
            needed := len(self._encode(text[:length].strip(), as_text=True))
        ) > MAX_DESCRIPTION_TOKENS:
            length = min(length - 1, length * MAX_DESCRIPTION_TOKENS // needed)
        return text[:length].strip()
