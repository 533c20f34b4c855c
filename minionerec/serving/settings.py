"""The flags of ``serve.py``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minionerec.errors import UserError
from minionerec.experiment.problems import did_you_mean


class ServerSettings(BaseModel):
    """How the server listens, what it takes, and how long it may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path = Field(description="runs/<name>, or the folder of one of its checkpoints")
    checkpoint: str | None = Field(
        None, description="sft, rl or a folder; left out: the newest of the run"
    )
    attributes: Path | None = Field(
        None, description="table with item_id and columns to filter by (.csv, .jsonl, .parquet)"
    )
    fusion: bool = Field(
        True, description="unite the model's lists with those of rules, if the run was evaluated so"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all")
    port: int = Field(8000, ge=0, le=65535, description="0: any that is free")
    api_key_file: Path | None = Field(
        None, description="file with the key that requests must carry as X-API-Key"
    )
    threads: int = Field(1, ge=1, description="CPU threads of the search")
    max_batch: int = Field(
        32, ge=1, description="histories that share a search; more wait longer, hardly faster"
    )
    max_wait_ms: float = Field(3.0, ge=0, description="wait of an idle search for company")
    max_waiting: int = Field(
        256, ge=1, description="histories that may wait; further ones are turned away (503)"
    )
    max_body_bytes: int = Field(4_000_000, ge=1, description="of a request")
    timeout_s: float = Field(10.0, gt=0, description="for an answer, then 503")


def read_flags(flags: dict[str, str]) -> ServerSettings:
    """Settings from flags.

    Raises:
        UserError: a line for every mistake.
    """
    fields = ServerSettings.model_fields
    problems = []
    for name in flags:
        if name not in fields:
            advice = did_you_mean(name, fields)
            if name == "config":  # as every other command has it
                advice = "; a run says itself how it was made: write --run runs/<name>"
            problems.append(f"command line: unknown flag --{name}{advice}")
    known = {name: text for name, text in flags.items() if name in fields}
    try:
        settings = ServerSettings.model_validate(known)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            if detail["type"] == "missing":
                problems.append(f"--{name} is missing: {fields[name].description}")
            else:
                problems.append(f"--{name}: got '{detail['input']}': {detail['msg']}")
    if problems:
        raise UserError("\n".join(problems))
    return settings


def describe_flags() -> str:
    """A line for every flag."""
    lines = []
    for name, field in ServerSettings.model_fields.items():
        default = "" if field.is_required() or field.default is None else f" ({field.default})"
        lines.append(f"  --{name:<16} {field.description}{default}")
    return "\n".join(lines)
