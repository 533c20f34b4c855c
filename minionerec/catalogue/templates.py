"""How the tasks are worded: the templates of prompts, and their file in a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minionerec.catalogue.sources.text import LONE_SURROGATE
from minionerec.errors import UserError
from minionerec.experiment.choices import TASKS
from minionerec.experiment.files import read_json

TEMPLATE_FILE = "prompt_template.json"


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
