"""The one place where prompts are worded.

SFT, RL, evaluation and serving all render through ``Renderer``.

A prompt is ``before + content + after`` with ``content`` the history or the one item shown. Its
token ids are those of one tokenizer call on the whole text, yet every piece (wording, SID, title)
is tokenised once for the whole run: pieces are cut only where tokenizers cut, beside a SID token
and in front of a single space. ``Renderer.prompt`` is given only what a model may see, so no
wording can leak the target (the reference appends the answer to its title -> SID prompts).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from minionerec.catalogue.compact import IntLists, IntRows
from minionerec.catalogue.item_text import item_texts
from minionerec.catalogue.sources.text import LONE_SURROGATE
from minionerec.errors import UserError
from minionerec.experiment.choices import TASKS
from minionerec.experiment.files import read_json

TEMPLATE_FILE = "prompt_template.json"
MAX_DESCRIPTION_TOKENS = 128  # the part of a description that a prompt shows
TEXTS_AT_ONCE = 4096  # that are tokenised together
KEPT_PIECES = 200_000  # of SIDs, as lists
CHECKED_PROMPTS = (
    32  # of each task, whose pieces are compared with the tokenizer's answer for the whole text
)


@dataclass(frozen=True)
class Template:
    """Wording of all tasks; travels with every checkpoint."""

    name: str
    before: dict[str, str]  # task -> text in front of the content
    after: dict[str, str]  # task -> text behind the content
    sid_separator: str
    title_separator: str


def _alpaca(instruction: str, label: str) -> tuple[str, str]:
    """Instruction, input, response: the three-part layout of the paper's prompts."""
    return f"### Instruction:\n{instruction}\n\n### Input:\n{label}: ", "\n\n### Response:\n"


_ALPACA = {
    "sid_to_sid": _alpaca(
        "A user has interacted with these items in order. Predict the next item.", "Items"
    ),
    "sid_to_title": _alpaca("Give the title of this item.", "Item"),
    "title_to_sid": _alpaca("Give the item that has this title.", "Title"),
    "sids_to_title": _alpaca(
        "A user has interacted with these items in order. Predict the title of the next item.",
        "Items",
    ),
    "titles_to_sid": _alpaca(
        "A user has interacted with items of these titles in order. Predict the next item.",
        "Titles",
    ),
    "description_to_sid": _alpaca("Give the item that this text describes.", "Description"),
}
# The markers come first and nothing follows a history of SIDs, so that a user's earlier prompt is a
# prefix of the later one.
_COMPACT = {
    "sid_to_sid": ("", ""),
    "sid_to_title": ("item:", " title:"),
    "title_to_sid": ("title: ", " item:"),
    "sids_to_title": ("history:", " title:"),
    "titles_to_sid": ("titles: ", " item:"),
    "description_to_sid": ("text: ", " item:"),
}


def _template(
    name: str, wording: dict[str, tuple[str, str]], sid_separator: str, title_separator: str
) -> Template:
    before, after = ({task: pair[i] for task, pair in wording.items()} for i in (0, 1))
    return Template(name, before, after, sid_separator, title_separator)


TEMPLATES = {
    "alpaca": _template("alpaca", _ALPACA, ", ", "; "),
    "compact": _template("compact", _COMPACT, "", "; "),
}


def save_template(template: Template, directory: Path) -> None:
    """Write the wording beside the weights."""
    (directory / TEMPLATE_FILE).write_text(json.dumps(asdict(template), indent=1))


def load_template(directory: Path, default: str) -> Template:
    """The wording a checkpoint was trained with, or the named one for a foreign checkpoint.

    Raises:
        UserError: the file is not a template.
    """
    file = directory / TEMPLATE_FILE
    if not file.is_file():
        return TEMPLATES[default]
    try:
        content = read_json(file.read_text(encoding="utf-8"))
        problem = _problem(content)
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise UserError(
            f"{file}: is not a prompt template ({problem}); train this checkpoint again"
        )
    return Template(**content)


def _problem(content: Any) -> str:
    """What keeps the content of a file from being a template; "" if nothing does."""
    if not isinstance(content, dict):
        return f"got a {type(content).__name__}, expected an object"
    wanted = [field.name for field in fields(Template)]
    if content.keys() != set(wanted):
        return f"its keys are {', '.join(content)}, expected {', '.join(wanted)}"
    texts = {name: content[name] for name in ("name", "sid_separator", "title_separator")}
    for place in ("before", "after"):
        wording = content[place]
        if not isinstance(wording, dict) or wording.keys() != set(TASKS):
            return f"{place}: expected a text for each of {', '.join(TASKS)}"
        texts |= {f"{place}.{task}": text for task, text in wording.items()}
    for name, text in texts.items():
        if not isinstance(text, str):
            return f"{name}: got a {type(text).__name__}, expected a text"
        if LONE_SURROGATE.search(text):
            return f"{name}: holds half of a character (a lone surrogate)"
    return ""


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
        self._item_pieces = cache(self._tokenize_item_pieces)
        self._longest_completion = cache(self._find_longest_completion)
        # A large catalogue's SIDs stay one table; lists are made of those that are asked for
        self._sid_piece = lru_cache(KEPT_PIECES)(self._make_sid_piece)
        self._sid_completion = lru_cache(KEPT_PIECES)(self._make_sid_completion)

    def has_description(self, item: int) -> bool:
        """Whether ``description_to_sid`` has anything to show for this item."""
        return bool(self._descriptions[item])

    def text(self, task: str, shown: Sequence[int]) -> str:
        """The prompt as people read it, nothing dropped.

        ``prompt`` is its token ids behind the start token, if there is one.
        """
        texts = self._texts(task)
        content = (
            [texts[item] for item in shown]
            if texts
            else ["".join(self._sid_tokens(item)) for item in shown]
        )
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
            return self._title_completions[target]
        return self._sid_completion(target)

    def _whole(self, task: str, shown: Sequence[int]) -> list[int]:
        return self._bos + self._encode(self.text(task, shown), as_text=bool(self._texts(task)))

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
        before, separator, texts = (
            self.template.before[task],
            self._separator(task),
            self._texts(task),
        )
        lead = " " if texts and before.endswith(" ") and separator.endswith(" ") else ""
        if place == "before":
            ids = self._bos + self._encode(before.removesuffix(lead), as_text=bool(texts))
            return IntLists.of([ids])
        tail = self.template.after[task] if place == "last" else separator.removesuffix(lead)
        if texts:
            return self._item_pieces(task == "description_to_sid", lead, tail)
        return self._tokenize_behind(self._sid_tokens(0)[-1], [tail], False)

    def _check_pieces(self, task: str) -> bool:
        """Whether pieces give the ids of the whole text, tried on prompts from everywhere.

        False for wording that leaves no place to cut and for tokenizers that merge across spaces:
            their prompts are tokenised whole.
        """
        several = 4 if task in ("sid_to_sid", "sids_to_title", "titles_to_sid") else 1
        items = range(0, len(self._sids), max(1, len(self._sids) // (CHECKED_PROMPTS * several)))
        prompts = [items[i : i + several] for i in range(0, len(items), several)][:CHECKED_PROMPTS]
        return all(
            self._whole(task, shown) == self._from_pieces(task, shown, sys.maxsize)
            for shown in prompts
        )

    def _tokenize_item_pieces(self, of_descriptions: bool, lead: str, tail: str) -> IntLists:
        """Every item's text between what stands before and behind it; tasks share them."""
        texts = self._shortened if of_descriptions else self._named
        return self._tokenize_behind("x", (f"{lead}{text}{tail}" for text in texts), True)

    def _tokenize_behind(self, start: str, texts: Iterable[str], as_text: bool) -> IntLists:
        """Texts as they are tokenised inside a prompt.

        Some tokenizers treat the beginning of a text differently.
        """
        skip = len(self._encode(start, as_text))
        return IntLists.of(
            ids[skip:] for ids in self._encoded((start + text for text in texts), as_text)
        )

    @cached_property
    def _title_completions(self) -> IntLists:
        return IntLists.of(ids + self._eos for ids in self._encoded(self._titles, as_text=True))

    def _find_longest_completion(self, of_titles: bool) -> int:
        if of_titles:
            return self._title_completions.longest()
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

    def _texts(self, task: str) -> list[str]:
        """What a task shows of each item; empty for the tasks that show SIDs."""
        if task.startswith("sid"):
            return []
        return self._shortened if task == "description_to_sid" else self._named

    def _sid_tokens(self, item: int) -> list[str]:
        return self._tokenizer.convert_ids_to_tokens(list(self._sids[item]))

    # Texts are made when a task first shows them: a search over SIDs never does

    @cached_property
    def _titles(self) -> list[str]:
        return [text.strip() for text in self._items["title"].tolist()]

    @cached_property
    def _named(self) -> list[str]:
        """What stands for an item where a prompt names it."""
        # Of the title alone the text as it is: it was cleaned when it was prepared
        return self._titles if len(self._shown) == 1 else item_texts(self._items, self._shown)

    @cached_property
    def _descriptions(self) -> list[str]:
        return [text.strip() for text in self._items["description"].tolist()]

    @cached_property
    def _shortened(self) -> list[str]:
        """Descriptions cut to at most ``MAX_DESCRIPTION_TOKENS`` tokens."""
        ids = self._encoded(self._descriptions, as_text=True)
        return [
            self._cut(text, found) if len(found) > MAX_DESCRIPTION_TOKENS else text
            for text, found in zip(self._descriptions, ids, strict=True)
        ]

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
