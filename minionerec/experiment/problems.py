"""Pydantic's findings in this project's words: what was found, what was expected, on one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

BOUNDS = {"ge": ">=", "le": "<=", "gt": ">"}


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        key: ``section.key``, or a key of the top level.
        text: what was found, what is expected.
        alone: whether the value is wrong by itself, whatever the other keys say.
    """

    key: str
    text: str
    alone: bool


def problems_of(error: ValidationError) -> list[Problem]:
    """The first problem of every key, in the order of the settings."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        # ("sft", "tasks", "sid_to_sids", "[key]") is a mistake in sft.tasks
        key = ".".join(map(str, detail["loc"][:2]))
        text = _in_words(detail["type"], detail["input"], detail["msg"], detail.get("ctx", {}))
        alone = detail["type"] != "value_error"
        if not key:  # a check over sections names its key itself
            key, _, text = text.partition(": ")
        found.setdefault(key, Problem(key, text, alone))
    return list(found.values())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'epochs'?`` where something is like the word, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _in_words(kind: str, value: Any, message: str, context: dict[str, Any]) -> str:
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", context["expected"])
        expected = f"expected one of {', '.join(choices)}"
        return f"got '{value}', {expected}{did_you_mean(str(value), choices)}"
    if kind == "too_short":
        return "got an empty list, expected at least one value"
    for name, sign in BOUNDS.items():
        if name in context:
            return f"got {_number(value)}, expected a number {sign} {_number(context[name])}"
    return f"got {value!r}: {message}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
