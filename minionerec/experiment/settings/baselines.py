"""Settings of the baselines."""

from __future__ import annotations

from pydantic import Field

from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.choices import BaselineName
from minionerec.experiment.settings.section import Count, Positive, Rate, Settings


class BaselineSettings(Settings):
    """Baselines on the same split and evaluator."""

    methods: list[BaselineName] = Field(
        [*(name for name, row in BASELINES.items() if row.module == "rules"), "sasrec"],
        min_length=1,
        description=(
            "which to run; text_knn, tgh and tiger need stage 1. The default fits a CPU: tgh, "
            "gru4rec, hstu and tiger take from minutes to hours there"
        ),
    )
    hidden_size: list[Count] = Field(
        [128],
        min_length=1,
        description=(
            "sasrec, gru4rec, hstu: widths to try; of all combinations of values to try the best "
            "on validation NDCG@10 is ranked"
        ),
    )
    layers: list[Count] = Field(
        [2],
        min_length=1,
        description="sasrec, gru4rec, hstu: numbers of blocks to try (SASRec's paper: 2)",
    )
    heads: int = Field(2, ge=1, description="sasrec, hstu: attention heads; divides the widths")
    dropout: list[Rate] = Field(
        [0.2, 0.5],
        min_length=1,
        description="sasrec, gru4rec, hstu: rates to try (SASRec's paper: 0.2; 0.5 on sparse data)",
    )
    learning_rate: list[Positive] = Field(
        [1e-3],
        min_length=1,
        description="sasrec, gru4rec, hstu: AdamW step sizes to try (SASRec's paper)",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="neural baselines: AdamW decoupled weight decay"
    )
    batch_size: int = Field(
        128,
        ge=1,
        description=(
            "sasrec, gru4rec, hstu: windows of max_history + 1 items per step (SASRec's paper)"
        ),
    )
    epochs: int = Field(
        200, ge=1, description="sasrec, gru4rec, hstu: most passes over the train sequences"
    )
    patience: int = Field(
        5,
        ge=1,
        description="neural baselines: epochs without a better validation NDCG@10 before stopping",
    )
    tiger_hidden_size: int = Field(128, ge=32, description="tiger: width (its paper)")
    tiger_layers: int = Field(
        3, ge=1, description="tiger: encoder blocks, and as many decoder blocks (its paper: 4)"
    )
    tiger_dropout: list[Rate] = Field(
        [0.2], min_length=1, description="tiger: rates to try (its paper: 0.1)"
    )
    tiger_learning_rate: list[Positive] = Field(
        [1e-3], min_length=1, description="tiger: AdamW step sizes to try"
    )
    tiger_batch_size: int = Field(
        32,
        ge=1,
        description=(
            "tiger: windows of max_history + 1 items per step (its paper: 256 targets, here some "
            "150 on amazon_industrial)"
        ),
    )
    tiger_epochs: int = Field(
        12,
        ge=1,
        description=(
            "tiger: most passes over the train sequences; the step size falls to 0 over them"
        ),
    )
