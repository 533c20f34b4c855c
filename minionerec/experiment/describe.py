"""Every key of the settings with its default and meaning, for ``--help``."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from minionerec.experiment.settings import SECTIONS, keys_of, section_class


def describe_settings() -> str:
    """The settings as text: a heading per section, two lines per key."""
    lines = ["Settings (YAML keys; on the command line --section.key value):"]
    for section in ("", *SECTIONS):
        heading = (section_class(section).__doc__ or "").strip().splitlines()[0]
        lines.append(f"\n{section}: {heading}" if section else "")
        for name, field in keys_of(section).items():
            key = f"{section}.{name}" if section else name
            default = field.get_default(call_default_factory=True)
            choices = choices_of(field.annotation)
            one_of = f" [{', '.join(choices)}]" if choices else ""
            lines.append(f"  {key} = {default!r}")
            lines.append(f"      {field.description}{one_of}")
    return "\n".join(lines)


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a key may have (of a list: its entries, of a mapping: its names)."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return arguments
    return choices_of(arguments[0]) if arguments else ()
