"""What may be asked of the server, and the one line that says why something may not."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_HISTORIES = 64  # of a request; more fit into a file for recommend.py
MOST_ITEMS = 1_000  # of a history; the model reads the latest data.max_history of them
MOST_CHARACTERS = 120  # of what was found, in a message

History = Annotated[list[str], Field(min_length=1, max_length=MOST_ITEMS)]
Value = str | bool | int | float | None


class Refused(Exception):
    """A request that gets one line instead of an answer.

    Attributes:
        status: HTTP status code.
        reason: one word, for the metrics.
    """

    def __init__(self, status: int, reason: str, text: str):
        super().__init__(text)
        self.status = status
        self.reason = reason


class Body(BaseModel):
    """A body without unknown keys, and without values that only look like what is meant."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendBody(Body):
    """``POST /recommend``."""

    histories: list[History] = Field(
        min_length=1,
        max_length=MOST_HISTORIES,
        description="of each user the item ids, oldest first",
        examples=[[["B001", "B002"]]],
    )
    k: int = Field(10, ge=1, description="items per history; at most evaluate.num_beams")
    exclude_history: bool | None = Field(
        None, description="leave out what a history holds; null: as the run was evaluated"
    )
    allow: list[str] | None = Field(None, description="the only item ids that may be recommended")
    deny: list[str] | None = Field(None, description="item ids that may not be recommended")
    where: dict[str, list[Value]] | None = Field(
        None,
        description="column -> values, or [low, high] of a number; items must meet all of them",
        examples=[{"brand": ["Acme"], "price": [5, 20]}],
    )
    explain: bool = Field(False, description="say for every item why it is there")


class ReloadBody(Body):
    """``POST /catalogue/reload``."""

    name: str | None = Field(
        None,
        description="folder beside the run that is served, as rqvae/add_items.py makes it; null: "
        "the run that is served, read again",
        examples=["quickstart-extended"],
    )


def parse(kind: type[Body], raw: bytes) -> Any:
    """A body's bytes as ``kind``.

    Raises:
        Refused: naming the first mistake.
    """
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise Refused(422, "body", in_words(error)) from None


def in_words(error: ValidationError) -> str:
    """The first mistake of a body: where, what was found, what was expected."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = "body"
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    found = repr(first["input"])
    if isinstance(first["input"], bytes):  # what is no JSON
        found = repr(first["input"][:20].decode(errors="replace"))
    return f"{where[:MOST_CHARACTERS]}: got {found[:MOST_CHARACTERS]}: {first['msg']}"


def one_line(text: str) -> str:
    """A text without what would break its line, or a reader's terminal."""
    shown = []
    for character in text:
        shown.append(character if character.isprintable() else " ")
    return " ".join("".join(shown).split())
