"""What every section of an experiment's YAML file has in common, and the types of its numbers."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minionerec.errors import UserError
from minionerec.experiment.problems import problems_of

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=0.9)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """A section of the YAML: read once, never changed, without keys that are not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def changed(self, values: dict[str, Any]) -> Self:
        """A copy with other values, checked as a YAML file is (``model_copy`` would not check).

        Args:
            values: by key; of an experiment also by ``section.key``.

        Raises:
            UserError: a line per mistake.
        """
        fields: dict[str, Any] = dict(self)
        sections: dict[str, dict[str, Any]] = {}
        for dotted, value in values.items():
            section, _, key = dotted.partition(".")
            if key:
                sections.setdefault(section, {})[key] = value
            else:
                fields[section] = value
        for section, changes in sections.items():
            fields[section] = {**fields[section].kept(changes), **changes}
        try:
            return type(self)(**fields)
        except ValidationError as error:
            lines = [f"{problem.key}: {problem.text}" for problem in problems_of(error)]
            raise UserError("\n".join(lines)) from None

    def kept(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The values that stay as they are when those of ``changes`` are given."""
        return dict(self)
