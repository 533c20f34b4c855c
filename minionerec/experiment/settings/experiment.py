"""An experiment's whole YAML file: a name, and a section per stage."""

from __future__ import annotations

import json
import re
from typing import Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from minionerec.experiment.settings.baselines import BaselineSettings
from minionerec.experiment.settings.data import DataSettings
from minionerec.experiment.settings.evaluate import EvaluateSettings
from minionerec.experiment.settings.model import ModelSettings
from minionerec.experiment.settings.rl import RLSettings
from minionerec.experiment.settings.section import Settings
from minionerec.experiment.settings.sft import SFTSettings
from minionerec.experiment.settings.sids import SidSettings

# Keys that have moved to the section that owns them.
MOVED = {
    "sft.normalize": "model.normalize",
    "rl.normalize": "model.normalize",
    "evaluate.normalize": "model.normalize",
    "sft.max_tokens": "model.max_tokens",
}


class Experiment(Settings):
    """One YAML file: a name, and a section per stage."""

    name: str = Field(
        "",
        description=(
            "runs/<name> holds everything this experiment writes; empty: the YAML file's name"
        ),
    )
    output_dir: str = Field("runs", description="parent folder of all experiments")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of every random choice")
    data: DataSettings = Field(default_factory=DataSettings)
    sids: SidSettings = Field(default_factory=SidSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    sft: SFTSettings = Field(default_factory=SFTSettings)
    rl: RLSettings = Field(default_factory=RLSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    baselines: BaselineSettings = Field(default_factory=BaselineSettings)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"got '{name}', expected letters, digits, '.', '_', '-', "
                "beginning with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _given_sids_come_with_the_data(self) -> Self:
        if self.sids.method == "given" and self.data.source != "minionerec":
            raise ValueError(
                f"sids.method: given needs data.source minionerec, got {self.data.source}"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_those_of_sft(self) -> Self:
        if self.rl.anchor == "labels" and not self.sft.soft_labels:
            raise ValueError("rl.anchor: labels needs sft.soft_labels, which are off")
        return self


SECTIONS = [
    name for name, field in Experiment.model_fields.items() if field.default_factory is not None
]
TOP_LEVEL = [name for name in Experiment.model_fields if name not in SECTIONS]


def section_class(section: str) -> type[Settings]:
    """The settings of a section; ``""`` is the top level."""
    kind: Any = Experiment.model_fields[section].annotation if section else Experiment
    return kind


def keys_of(section: str) -> dict[str, FieldInfo]:
    """The keys of a section and how each is declared; ``""`` is the top level, without sections."""
    fields = section_class(section).model_fields
    return {name: field for name, field in fields.items() if section or name in TOP_LEVEL}


def schema() -> str:
    """The JSON schema of a YAML file, from which editors complete keys and check values."""
    return json.dumps(Experiment.model_json_schema(), indent=1) + "\n"
