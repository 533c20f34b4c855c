"""Every key of the settings with its default and meaning, for ``--help``."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, get_args, get_origin

from minionerec.experiment.settings import SECTIONS, keys_of, section_class

PAGE_HEAD = """\
# Settings

Every key of an experiment's YAML file; on the command line `--section.key value`. This page is
written by `python -m minionerec.experiment.describe > docs/SETTINGS.md` from the declarations in
`minionerec/experiment/settings/`, the only place where a default stands. "paper" is the
MiniOneRec report, arXiv:2510.24431.
"""
HOW_TO_WRITE = f"""\
Flags of every command
  --config FILE            the experiment's YAML file (always)
  --section.key VALUE      another value for a key of it
  --help [SECTION]         this, or one of {", ".join(SECTIONS)}
Flags of the stages' .sh commands
  --from RUN               link finished stages of another run (runs/A) as far as settings agree
  --redo STAGE [--yes]     list, with --yes remove, a stage and what was made from it, then go on

Lists are written 64,64,64 or '[64, 64, 64]', mappings '{{sid_to_sid: 1.0}}', or a name at a time:
--sft.tasks.sid_to_sid 1.0. Paths are relative to the working directory.

Settings (YAML keys; on the command line --section.key value):"""


def describe_settings() -> str:
    """The settings as text: a heading per section, two lines per key."""
    parts = [HOW_TO_WRITE, *map(describe_section, ("", *SECTIONS))]
    return "\n\n".join(parts)


def describe_section(section: str) -> str:
    """The keys of one section, "" for those of none."""
    heading = (section_class(section).__doc__ or "").strip().splitlines()[0]
    lines = [f"{section}: {heading}"] if section else []
    for name, field in keys_of(section).items():
        key = f"{section}.{name}" if section else name
        default = field.get_default(call_default_factory=True)
        choices = choices_of(field.annotation)
        one_of = f" [{', '.join(choices)}]" if choices else ""
        lines.append(f"  {key} = {default!r}")
        lines.append(f"      {field.description}{one_of}")
    return "\n".join(lines)


def settings_page() -> str:
    """``docs/SETTINGS.md``: every key in a table per section."""
    parts = [PAGE_HEAD]
    for section in ("", *SECTIONS):
        heading = (section_class(section).__doc__ or "").strip().splitlines()[0]
        parts.append(f"## `{section or 'top level'}`\n\n{heading}\n")
        rows = ["| key | default | meaning |", "|---|---|---|"]
        for name, field in keys_of(section).items():
            default = field.get_default(call_default_factory=True)
            written = json.dumps(default, ensure_ascii=False)
            choices = choices_of(field.annotation)
            one_of = f" One of: {', '.join(choices)}." if choices else ""
            meaning = f"{field.description}.{one_of}".replace("|", "\\|")
            rows.append(f"| `{name}` | `{written}` | {meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a key may have (of a list: its entries, of a mapping: its names)."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return arguments
    return choices_of(arguments[0]) if arguments else ()


if __name__ == "__main__":
    sys.stdout.write(settings_page())
