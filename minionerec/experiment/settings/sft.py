"""Settings of stage 2: supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from minionerec.experiment.choices import CodeTask, Schedule, SoftLabelKey, Task, TeacherName
from minionerec.experiment.settings.section import Settings, Share


class SFTSettings(Settings):
    """Stage 2: supervised fine-tuning."""

    tasks: dict[Task | CodeTask, Share] = Field(
        {
            "sid_to_sid": 1.0,
            "sid_to_title": 1.0,
            "title_to_sid": 1.0,
            "sids_to_title": 1.0,
            "titles_to_sid": 1.0,
        },
        description=(
            "task -> share of its rows used per epoch; 0 or absent: off, 2: twice (paper: tasks 1"
            " to 5 together); words_to_code and code_to_words have a row for every code (TS-Rec)"
        ),
    )
    epochs: int = Field(10, ge=1, description="passes over the rows (paper)")
    batch_size: int = Field(
        1024, ge=1, description="rows per optimiser step over all processes (paper)"
    )
    micro_batch_size: int = Field(
        64, ge=1, description="rows per forward and process; lower it when memory runs out"
    )
    rows: Literal["per_target", "per_user"] = Field(
        "per_target",
        description=(
            "per_target: every target with its latest max_history items (paper); per_user: "
            "sequences cut into windows of max_history + 1 items, each target with what its "
            "window holds before it: many times fewer tokens where histories are long, if "
            "group_by_user keeps windows together"
        ),
    )
    holdout_for_rl: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description=(
            "per_target only: the latest share of the train targets by time that SFT leaves to RL, "
            "which then trains on these alone; 0: both train on all (paper)"
        ),
    )
    group_by_user: bool = Field(
        False,
        description=(
            "keep a user's rows in one micro-batch, so that shared histories are computed once"
        ),
    )
    learning_rate: float = Field(3e-4, gt=0, description="AdamW peak step size (paper)")
    schedule: Schedule = Field("cosine", description="shape after warm-up")
    warmup_steps: int = Field(20, ge=0, description="optimiser steps of linear warm-up (paper)")
    weight_decay: float = Field(0.0, ge=0, description="AdamW decoupled weight decay")
    dropout: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="scratch models only: dropout on embeddings, attention and MLP outputs",
    )
    soft_labels: dict[SoftLabelKey, Share] = Field(
        {},
        description=(
            "beside its own target a row is taught the best items of a teacher. weight: the "
            "teacher's share of the loss (0.5); final_weight: where that goes in the second half "
            "of all steps (stays); top_k: items a row (8); sharpness: power of their "
            "probabilities (1.5); items: passes an epoch over rows that "
            "show one item and have the teacher alone (1); pairs: so many such rows per item that "
            "show two items, which follow each other in train (0); open_histories: passes over "
            "rows that show each user's train items to their end, where the next one is held out "
            "and not read (0); temperature: of text_knn (0.07); {}: off (paper)"
        ),
    )
    teacher: dict[TeacherName, Share] = Field(
        {"markov": 0.7, "text_knn": 0.3},
        description=(
            "soft_labels only: ranker -> weight in the mix of their probabilities; networks are "
            "trained on first use, four of a kind, so that none is asked about a row it has "
            "learned; {}: the weights of markov, item_knn and text_knn and the temperature that "
            "expect validation rows best, as `python baselines/mix.py` prints them; what a ranker "
            "leaves open is chosen on validation rows too"
        ),
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    evals_per_epoch: float = Field(
        1.0, gt=0, description="validations per epoch; each is a possible best checkpoint"
    )
    patience: int = Field(
        3,
        ge=0,
        description=(
            "validations without improvement before stopping (paper: 3); 0: never stop early"
        ),
    )
    eval_rows: int = Field(
        1000,
        ge=0,
        description="validation rows decoded per validation, a fixed random sample; 0: all",
    )
    eval_beams: int = Field(10, ge=10, description="beams per validation row, at least 10")
    report_to: str = Field("none", description="none, tensorboard, wandb, or several with commas")

    @field_validator("tasks")
    @classmethod
    def _are_not_all_off(cls, tasks: dict[str, float]) -> dict[str, float]:
        if not any(tasks.values()):
            raise ValueError("every task is off; give one a positive share")
        return tasks

    @field_validator("holdout_for_rl")
    @classmethod
    def _needs_single_targets(cls, share: float, info: ValidationInfo) -> float:
        if share and info.data.get("rows") == "per_user":
            raise ValueError("needs sft.rows per_target; set it to 0")
        return share

    @field_validator("soft_labels")
    @classmethod
    def _are_in_range(cls, given: dict[str, float]) -> dict[str, float]:
        for key in ("weight", "final_weight"):
            if given.get(key, 0) > 1:
                raise ValueError(f"{key}: got {given[key]:g}, expected at most 1")
        for key, least in (("top_k", 1), ("items", 0), ("pairs", 0), ("open_histories", 0)):
            number = given.get(key, least)
            if number < least or number != int(number):
                raise ValueError(f"{key}: got {number:g}, expected a whole number from {least}")
        for key in ("sharpness", "temperature"):
            if given.get(key) == 0:
                raise ValueError(f"{key}: got 0, expected a number above 0")
        return given

    @field_validator("teacher")
    @classmethod
    def _has_a_weight(cls, teacher: dict[str, float]) -> dict[str, float]:
        if teacher and not any(teacher.values()):
            raise ValueError("every weight is 0; give a ranker a weight")
        return teacher
