"""Settings of stage 4: HR@K and NDCG@K over the full catalogue."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from minionerec.experiment.choices import FusionKey
from minionerec.experiment.settings.section import Settings, Share


class EvaluateSettings(Settings):
    """Stage 4: HR@K and NDCG@K over the full catalogue."""

    checkpoint: str = Field(
        "rl", description="sft, rl, or the folder of any checkpoint with its sids.json"
    )
    split: Literal["test", "valid"] = Field("test", description="which targets are ranked")
    num_beams: int = Field(50, ge=1, description="items returned per user (paper: 50)")
    batch_size: int = Field(
        64,
        ge=1,
        description="users that a process ranks and keeps at a time; never changes a result",
    )
    exclude_history: bool = Field(
        False,
        description=(
            "never recommend what the user had before, also beyond the prompt's history; "
            "baselines neither: for data where nothing is taken twice"
        ),
    )
    fusion: dict[FusionKey, Share] = Field(
        {},
        description=(
            "also write <checkpoint>-fusion-<split>: the model's lists united with those of rules, "
            "weighed as probabilities. model and rankers -> weight, temperature: of text_knn "
            "(0.1); `python baselines/mix.py` tries weights on validation rows; {}: none"
        ),
    )
    beam_widths: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description=(
            "also rank a sample of the rows at these numbers of beams; 0: as many as the catalogue "
            "has SIDs, which scores every item exactly (for thousands of items); []: none"
        ),
    )
    beam_rows: int = Field(
        1000,
        ge=0,
        description="beam_widths only: rows ranked at each, a fixed random sample; 0: all",
    )
    bootstrap_samples: int = Field(
        1000, ge=0, description="resamples of the 95 % intervals; 0: none"
    )

    @field_validator("checkpoint")
    @classmethod
    def _is_named(cls, checkpoint: str) -> str:
        if not checkpoint:
            raise ValueError("is empty, expected sft, rl or the folder of a checkpoint")
        return checkpoint

    @field_validator("fusion")
    @classmethod
    def _weighs_something(cls, fusion: dict[str, float]) -> dict[str, float]:
        weights = [value for key, value in fusion.items() if key != "temperature"]
        if fusion and not any(weights):
            raise ValueError(
                "every weight is 0; give the model or a ranker a weight, or {} for none"
            )
        if fusion.get("temperature") == 0:
            raise ValueError("temperature: got 0, expected a number above 0")
        return fusion
