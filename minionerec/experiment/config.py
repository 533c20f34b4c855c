"""Reads one YAML file and the command line into an ``Experiment``, or says what to change.

The declared type of a key decides how its text is read (``1e-5`` is a float, ``no`` is never a
bool). A key that is written twice, or not declared in ``minionerec/experiment/settings/``, is an
error, and all mistakes are reported together, a line each. Nothing heavier than PyYAML and pydantic
is imported here, so that a bad file stops a run within a second.

    python -m minionerec.experiment.config --config configs/quickstart.yaml --sft.epochs 3   # check
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.describe import describe_section, describe_settings
from minionerec.experiment.mistakes import advice_on_key, advice_on_word
from minionerec.experiment.problems import did_you_mean, problems_of
from minionerec.experiment.settings import (
    MOVED,
    RL_PRESETS,
    SECTIONS,
    TOP_LEVEL,
    Experiment,
    keys_of,
)
from minionerec.experiment.yaml_file import (
    FLOAT,
    INT,
    Entries,
    Entry,
    check_keys,
    is_null,
    node_of_flag,
    node_of_value,
    read_entries,
    text_of,
    value_of,
    with_member,
)

SWITCHES = ("dry_run",)  # flags without a value
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_command_line(
    usage: str | None, argv: list[str] | None = None, own: Collection[str] | None = None
) -> tuple[Experiment, dict[str, str]]:
    """Read ``--config C --section.key value ...``.

    Args:
        usage: the script's docstring, printed before the keys on ``--help``.
        argv: the words after the script's name; the process's own by default.
        own: flags that belong to the script (``{"history", "k"}``), every other one is a mistake;
            None leaves it to the script to look at what it gets.

    Returns:
        The experiment, and the flags without a dot, which belong to the script.

    Raises:
        UserError: with every mistake on a line of its own.
    """
    argv = sys.argv[1:] if argv is None else argv
    if wants_help(argv):
        print(help_text(usage or "", argv))
        sys.exit(0)
    flags = split_flags(argv)
    if "config" not in flags:
        raise UserError(
            "--config is missing; name a YAML file, e.g. --config configs/quickstart.yaml"
            f"{_meant_flag(list(flags), ['config'])}"
        )
    path = flags.pop("config")
    of_script: dict[str, str] = {}
    overrides: dict[str, str] = {}
    for key, text in flags.items():
        is_of_script = key in own if own is not None else "." not in key and key not in TOP_LEVEL
        (of_script if is_of_script else overrides)[key] = text
    unknown = [key for key in overrides if "." not in key and key not in TOP_LEVEL]
    meant = _meant_flag(unknown, own or [])
    if meant:
        raise UserError(f"command line: unknown flag{meant}")
    return read_experiment(path, overrides), of_script


def _meant_flag(written: list[str], known: Collection[str]) -> str:
    """``; for --histroy write --history`` where a flag is like one of the command's own."""
    for key in written:
        near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.75)
        if near:
            return f"; for --{key} write --{near[0]}"
    return ""


def wants_help(argv: list[str]) -> bool:
    """Whether the words ask for help."""
    return bool({"-h", "--help"} & set(argv))


def help_text(usage: str, argv: list[str]) -> str:
    """What ``--help`` shows: a command's own flags, then the settings; ``--help sft`` a section.

    Raises:
        UserError: the word behind ``--help`` names no section.
    """
    place = next(number for number, word in enumerate(argv) if word in ("-h", "--help"))
    behind = argv[place + 1] if place + 1 < len(argv) else ""
    if behind and not behind.startswith("-"):
        if behind not in SECTIONS:
            raise UserError(
                f"command line: --help: got '{behind}', expected one of {', '.join(SECTIONS)}"
                f"{did_you_mean(behind, SECTIONS)}"
            )
        return describe_section(behind)
    return usage.strip() + "\n\n" + describe_settings()


def split_flags(argv: list[str]) -> dict[str, str]:
    """``--key value`` and ``--key=value`` as ``{key: text}``.

    Every flag but a switch has a value, so that none is half understood.
    """
    flags: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise UserError(
                f"command line: got '{word}', expected flags of the form --section.key value"
                f"{advice_on_word(word)}"
            )
        key, equals, text = word[2:].partition("=")
        if not equals and key not in SWITCHES:
            text = next(words, "--")
            if text.startswith("--"):
                raise UserError(f"command line: --{key} has no value; write --{key} VALUE")
        elif equals and key in SWITCHES:
            raise UserError(f"command line: --{key} takes no value; write --{key}")
        if key in flags:
            raise UserError(f"command line: --{key} is given twice; keep one")
        flags[key] = text
    return flags


def read_experiment(path: str | Path, overrides: dict[str, str] | None = None) -> Experiment:
    """Read a YAML file, apply ``{"section.key": text}`` overrides, check everything.

    Raises:
        UserError: one line per mistake, each with file and line (or the flag), what was found and
            what was expected.
    """
    path = Path(path)
    problems: list[str] = []
    entries = read_entries(path, SECTIONS, problems)
    # A preset decides what the other overrides of its section change
    for key, text in sorted((overrides or {}).items(), key=lambda pair: pair[0] != "rl.preset"):
        _add_override(entries, key, text, problems)
    values, mistakes = _read_values(entries)
    values["name"] = values.get("name") or path.stem
    experiment = None
    together = []
    try:
        experiment = Experiment(**values)
    except ValidationError as error:
        for problem in problems_of(error):
            if problem.alone:
                mistakes.setdefault(problem.key, problem.text)
            else:
                together.append(f"{path}: {problem.key}: {problem.text}")
    for (section, name), entry in entries.items():
        key = _dotted(section, name)
        if key in mistakes:
            problems.append(f"{_label(entry, key)}: {mistakes[key]}")
    # What keys say together is looked at when each of them is right by itself
    if problems or together or experiment is None:
        raise UserError("\n".join(problems or together))
    return experiment


def _add_override(entries: Entries, key: str, text: str, problems: list[str]) -> None:
    """``section.key`` replaces a value; ``section.key.name`` replaces one name of a mapping."""
    section, name, *members = key.split(".") if "." in key else ("", key)
    where = f"command line: --{key}"
    node = node_of_flag(text)
    check_keys(node, where, problems)
    if section not in ("", *SECTIONS):
        problems.append(f"{where}: unknown section '{section}'{did_you_mean(section, SECTIONS)}")
    elif len(members) > 1:
        advice = f"write --{section}.{name}.{members[0]} '{{{members[1]}: ...}}'"
        problems.append(f"{where}: has too many parts; {advice}")
    elif members:
        written = entries.get((section, name))
        before = written.node if written else _default_node(section, name, entries)
        entries[section, name] = Entry(where, with_member(before, members[0], node))
    else:
        entries[section, name] = Entry(where, node)


def _default_node(section: str, name: str, entries: Entries) -> yaml.Node:
    """The value that a key has where it is not written down (for ``rl``: its preset's)."""
    field = keys_of(section).get(name)
    value = field.get_default(call_default_factory=True) if field else {}
    if section == "rl" and ("rl", "preset") in entries:
        preset = RL_PRESETS.get(str(entries["rl", "preset"].node.value), {})
        value = preset.get(name, value)
    return node_of_value(value)


def _read_values(entries: Entries) -> tuple[dict[str, Any], dict[str, str]]:
    """Read every entry as the type that its key is declared with.

    Returns:
        ``{key: value}`` with a dictionary for every section, and ``{"section.key": mistake}``.
    """
    values: dict[str, Any] = {section: {} for section in SECTIONS}
    mistakes: dict[str, str] = {}
    for (section, name), entry in entries.items():
        key = _dotted(section, name)
        fields = keys_of(section)
        if key in MOVED:
            is_flag = entry.where.startswith("command line")
            advice = f"pass --{MOVED[key]}" if is_flag else "move it there"
            mistakes[key] = f"is now {MOVED[key]}; {advice}"
        elif name not in fields:
            known = list(fields)
            hint = advice_on_key(section, name, known) or _nearest_key(section, name)
            mistakes[key] = f"unknown key{hint}"
        else:
            try:
                value = _convert(entry.node, fields[name].annotation)
            except ValueError as error:
                mistakes[key] = str(error)
                continue
            (values[section] if section else values)[name] = value
    return values, mistakes


def _convert(node: yaml.Node, kind: Any) -> Any:
    """The node's text read as the declared type, whatever YAML would have guessed.

    Raises:
        ValueError: what was found and what was expected.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value_of(node)
    if origin is Annotated:
        return _convert(node, arguments[0])
    if origin is list:
        if isinstance(node, yaml.SequenceNode):
            return [_convert(child, arguments[0]) for child in node.value]
        if isinstance(node, yaml.ScalarNode) and node.value:
            words = [yaml.ScalarNode(node.tag, word.strip()) for word in node.value.split(",")]
            return [_convert(word, arguments[0]) for word in words]
        raise ValueError(f"got {text_of(node)}, expected a list")
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"got {text_of(node)}, expected 'name: value' pairs")
        return {key.value: _convert(child, arguments[1]) for key, child in node.value}
    scalar = str if origin is Literal else kind
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"got {text_of(node)}, expected {TYPE_NAMES[scalar]}")
    if scalar is str:
        return "" if is_null(node) else node.value
    return _convert_scalar(node.value, scalar)


def _convert_scalar(text: str, kind: type) -> bool | int | float:
    """``"1e-5"`` as a float, ``"3"`` as an int, ``"true"`` as a bool.

    Raises:
        ValueError: the text is not one of that type (``yes`` is no bool, ``3.0`` no int, ``nan`` no
            number).
    """
    if kind is bool and text in ("true", "false", "True", "False"):
        return text.lower() == "true"
    if kind is int and INT.match(text):
        return int(text)
    if kind is float and FLOAT.match(text) and math.isfinite(float(text)):
        return float(text)
    raise ValueError(f"got '{text}', expected {TYPE_NAMES[kind]}")


def _nearest_key(section: str, name: str) -> str:
    """Where an unknown key may belong: a similar one of its section, or the same one elsewhere."""
    if not section and name in SECTIONS:
        return f"; it is a section, write {name}.KEY"
    similar = [*keys_of(section), *([] if section else SECTIONS)]
    guesses = difflib.get_close_matches(name, similar, n=1)
    if not guesses:
        others = [other for other in ("", *SECTIONS) if other != section]
        guesses = [_dotted(other, name) for other in others if name in keys_of(other)]
    if not guesses:
        return ""
    return f"; did you mean {' or '.join(map(repr, guesses))}?"


def _dotted(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _label(entry: Entry, key: str) -> str:
    """Where a value was written; a flag names its key already."""
    return entry.where if entry.where.startswith("command line") else f"{entry.where}: {key}"


if __name__ == "__main__":
    with one_line_errors():
        print(f"{read_command_line(__doc__, own=())[0].name}: valid")
