"""Settings of stage 0: raw or tabular data to items, interactions and a split."""

from __future__ import annotations

import datetime
import re
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from minionerec.experiment.choices import Column
from minionerec.experiment.settings.section import Positive, Settings


class DataSettings(Settings):
    """Stage 0: raw or tabular data to items, interactions and a split."""

    source: Literal["tables", "amazon", "minionerec", "embedded"] = Field(
        "embedded", description="where the data comes from"
    )
    path: str = Field(
        "",
        validate_default=True,
        description="folder that holds the source's files; relative to the working directory",
    )
    interactions: str = Field(
        "",
        description=(
            "interactions (tables) or reviews (amazon) file inside path; empty: found by name"
        ),
    )
    items: str = Field(
        "",
        description=(
            "items (tables, minionerec) or metadata (amazon) file inside path; empty: found by name"
        ),
    )
    columns: dict[Column, str] = Field(
        {},
        description=(
            "tables only: our name -> column name in your files, e.g. {user_id: customer, "
            "timestamp: bought_at}; item_id is looked for in both files, items_item_id says how "
            "the items file calls it if that differs"
        ),
    )
    time_format: str = Field(
        "",
        description=(
            "tables only: how times are written if not as numbers or ISO dates, e.g. "
            "'%m/%d/%Y %I:%M:%S %p' (Python's strptime); empty: recognised"
        ),
    )
    missing_title: Literal["drop", "id", "error"] = Field(
        "drop",
        description=(
            "tables only: items without a title are dropped with their interactions and counted "
            "(drop, paper), have their id for one (id), or stop the stage (error)"
        ),
    )
    split: Literal["global_time", "leave_one_out", "own"] = Field(
        "global_time",
        description=(
            "global_time: 8:1:1 over all targets by time (paper); leave_one_out; own: the split "
            "the source carries"
        ),
    )
    split_ratios: list[Positive] = Field(
        [0.8, 0.1, 0.1],
        min_length=1,
        description="global_time only: shares of train, valid, test (paper)",
    )
    start: str = Field("", description="first UTC day kept, YYYY-MM-DD; empty: from the beginning")
    end: str = Field("", description="first UTC day no longer kept, YYYY-MM-DD; empty: to the end")
    k_core: int = Field(
        5,
        ge=0,
        description=(
            "users and items with fewer interactions are dropped, repeatedly (paper: 5); 0 or 1: "
            "off"
        ),
    )
    min_rating: float = Field(
        0.0, ge=0, description="interactions rated lower are dropped; 0 keeps all (paper)"
    )
    max_title_words: int = Field(
        20, ge=0, description="items with a longer title are dropped (paper: 20); 0: no limit"
    )
    max_history: int = Field(
        10, ge=1, description="items before the target that a prompt may show (paper: 10)"
    )

    @field_validator("path")
    @classmethod
    def _has_a_folder(cls, path: str, info: ValidationInfo) -> str:
        source = info.data.get("source", "embedded")
        if source != "embedded" and not path:
            raise ValueError(
                f"is empty, but data.source {source} needs a folder; pass --data.path FOLDER"
            )
        return path

    @field_validator("columns")
    @classmethod
    def _are_of_tables(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        source = info.data.get("source", "tables")
        if source != "tables" and columns:
            raise ValueError(
                f"has no effect with data.source {source}; only tables have columns to name"
            )
        named = [columns.get(ours, ours) for ours in ("user_id", "item_id", "timestamp")]
        for theirs in named:
            if named.count(theirs) > 1:
                raise ValueError(
                    f"column '{theirs}' stands for two of user_id, item_id and timestamp; each has "
                    "a column of its own"
                )
        return columns

    @field_validator("split")
    @classmethod
    def _is_carried_by_the_source(cls, split: str, info: ValidationInfo) -> str:
        source = info.data.get("source")
        if split == "own" and source in ("amazon", "embedded"):
            raise ValueError(
                f"own needs a source that carries a split, {source} has none; "
                "use global_time or leave_one_out"
            )
        return split

    @field_validator("split_ratios")
    @classmethod
    def _add_up_to_one(cls, ratios: list[float]) -> list[float]:
        if len(ratios) != 3 or abs(sum(ratios) - 1) > 1e-6:
            raise ValueError(
                f"got {ratios}, expected three shares (train, valid, test) that add up to 1"
            )
        return ratios

    @field_validator("start", "end")
    @classmethod
    def _is_a_day(cls, text: str) -> str:
        if text and not _is_day(text):
            raise ValueError(f"got '{text}', expected a day as YYYY-MM-DD")
        return text

    @field_validator("end")
    @classmethod
    def _is_after_start(cls, end: str, info: ValidationInfo) -> str:
        start = info.data.get("start", "")
        if start and end and start >= end:
            raise ValueError(f"got '{end}', expected a day after data.start '{start}'")
        return end


def _is_day(text: str) -> bool:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True
