"""The one place where prompts are worded: SFT, RL, evaluation and serving all render through ``Renderer``.

A prompt is ``before + content + after`` with ``content`` the history or the one item shown. It is tokenised piece by
piece, and every piece (wording, SID, title) once for the whole run. ``Renderer.prompt`` is given only what a model may
see, so no wording can leak the target (the reference appends the answer to its title -> SID prompts).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from minionerec.config import UserError

TEMPLATE_FILE = "prompt_template.json"
MAX_DESCRIPTION_TOKENS = 128   # the part of a description that a prompt shows


@dataclass(frozen=True)
class Template:
    """Wording of all tasks; travels with every checkpoint."""

    name: str
    before: dict[str, str]        # task -> text in front of the content
    after: dict[str, str]         # task -> text behind the content
    sid_separator: str
    title_separator: str


def _alpaca(instruction: str, label: str) -> tuple[str, str]:
    """Instruction, input, response: the three-part layout of the paper's prompts."""
    return f"### Instruction:\n{instruction}\n\n### Input:\n{label}: ", "\n\n### Response:\n"


_ALPACA = {
    "sid_to_sid": _alpaca("A user has interacted with these items in order. Predict the next item.", "Items"),
    "sid_to_title": _alpaca("Give the title of this item.", "Item"),
    "title_to_sid": _alpaca("Give the item that has this title.", "Title"),
    "sids_to_title": _alpaca("A user has interacted with these items in order. Predict the title of the next item.", "Items"),
    "titles_to_sid": _alpaca("A user has interacted with items of these titles in order. Predict the next item.", "Titles"),
    "description_to_sid": _alpaca("Give the item that this text describes.", "Description"),
}
# The markers come first and nothing follows a history of SIDs, so that a user's earlier prompt is a prefix of the later one.
_COMPACT = {
    "sid_to_sid": ("", ""), "sid_to_title": ("item:", " title:"), "title_to_sid": ("title:", " item:"),
    "sids_to_title": ("history:", " title:"), "titles_to_sid": ("titles:", " item:"), "description_to_sid": ("text:", " item:"),
}


def _template(name: str, wording: dict[str, tuple[str, str]], sid_separator: str, title_separator: str) -> Template:
    before, after = ({task: pair[i] for task, pair in wording.items()} for i in (0, 1))
    return Template(name, before, after, sid_separator, title_separator)


TEMPLATES = {
    "alpaca": _template("alpaca", _ALPACA, ", ", "; "),
    "compact": _template("compact", _COMPACT, "", ";"),
}


def save_template(template: Template, directory: Path) -> None:
    """Write the wording beside the weights."""
    (directory / TEMPLATE_FILE).write_text(json.dumps(asdict(template), indent=1))


def load_template(directory: Path, default: str) -> Template:
    """The wording a checkpoint was trained with, or the named built-in one for a foreign checkpoint."""
    file = directory / TEMPLATE_FILE
    return Template(**json.loads(file.read_text())) if file.is_file() else TEMPLATES[default]


class Renderer:
    """Item indexes to token ids.

    Args:
        tokenizer: of the backbone, SID tokens included.
        template: wording.
        sid_token_ids: the SID of each item as token ids, by item index.
        items: ``title`` and ``description`` by item index.
        max_tokens: prompt and completion together; longer rows lose their oldest history items.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, sid_token_ids: Sequence[Sequence[int]],
                 items: pd.DataFrame, max_tokens: int):
        self.template, self.max_tokens = template, max_tokens
        self._encode = lru_cache(maxsize=None)(lambda text: tokenizer.encode(text, add_special_tokens=False) if text else [])
        self._sids = [list(sid) for sid in sid_token_ids]
        self._titles, self._descriptions = items["title"].tolist(), items["description"].tolist()
        self._eos = [tokenizer.eos_token_id]
        with_special = tokenizer("x")["input_ids"]
        starts_with_bos = tokenizer.bos_token_id is not None and with_special[0] == tokenizer.bos_token_id
        # A prompt may be empty of wording (compact template, no history), and a model needs one token to start from.
        self._bos = [tokenizer.bos_token_id] if starts_with_bos else self._eos if template.name == "compact" else []

    def has_description(self, item: int) -> bool:
        """Whether ``description_to_sid`` has anything to show for this item."""
        return bool(self._descriptions[item])

    def prompt(self, task: str, shown: Sequence[int]) -> list[int]:
        """Token ids of the prompt that shows these items (oldest first) and nothing else.

        Raises:
            UserError: not even the latest item fits into ``max_tokens``.
        """
        before, after = self._encode(self.template.before[task]), self._encode(self.template.after[task])
        separator = self._encode(self.template.sid_separator if task.startswith("sid") else self.template.title_separator)
        pieces = [self._show(task, item) for item in shown]
        room = self.max_tokens - len(self._bos) - len(before) - len(after) - self._longest_completion(task)
        while pieces and sum(map(len, pieces)) + len(separator) * (len(pieces) - 1) > room and len(pieces) > 1:
            pieces.pop(0)
        content = [token for i, piece in enumerate(pieces) for token in (separator if i else []) + piece]
        if len(content) > room:
            raise UserError(f"sft.max_tokens: a '{task}' prompt needs {self.max_tokens - room + len(content)} tokens, "
                            f"the limit is {self.max_tokens}; raise it")
        return self._bos + before + content + after

    def completion(self, task: str, target: int) -> list[int]:
        """Token ids that the model must produce, end-of-sequence included."""
        return (self._encode(self._titles[target]) if task.endswith("title") else self._sids[target]) + self._eos

    def _show(self, task: str, item: int) -> list[int]:
        if task.startswith("sid"):
            return self._sids[item]
        if task == "description_to_sid":
            return self._encode(self._descriptions[item])[:MAX_DESCRIPTION_TOKENS]
        return self._encode(self._titles[item])

    @lru_cache(maxsize=None)
    def _longest_completion(self, task: str) -> int:
        return 1 + max(len(self._encode(t)) for t in self._titles) if task.endswith("title") else 1 + max(map(len, self._sids))
