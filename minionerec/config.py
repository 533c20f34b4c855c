"""Reads one YAML file and the command line into an ``Experiment``, or says on one line per mistake what to change.

The declared type of a key decides how its text is read (``1e-5`` is a float, ``no`` is never a bool), a key that is
written twice or not declared in ``minionerec/settings.py`` is an error, and all mistakes are reported together. Nothing
heavier than PyYAML is imported here, so a bad file stops a run within a second.

    python -m minionerec.config configs/quickstart.yaml --sft.epochs 3     # check only
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from minionerec.settings import RL_PRESETS, Experiment

SECTIONS = [f.name for f in dataclasses.fields(Experiment) if f.default_factory is not dataclasses.MISSING]
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")}


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line (or one line per mistake): found, expected, what to do."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One value as written: where (``file:line`` or ``command line``) and its YAML node."""

    where: str
    node: yaml.Node


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a ``UserError`` into its text on stderr (from the first process only) and exit code 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr, flush=True)
        sys.exit(2)


def read_command_line(usage: str, argv: list[str] | None = None) -> tuple[Experiment, dict[str, str]]:
    """Read ``--config C --section.key value ...``.

    Args:
        usage: the script's docstring, printed before the keys on ``--help``.
        argv: the words after the script's name; the process's own by default.

    Returns:
        The experiment, and the flags without a dot (``--history``, ``--k``), which belong to the script.

    Raises:
        UserError: with every mistake on a line of its own.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(usage.strip() + "\n\n" + describe_settings())
        sys.exit(0)
    flags = _split_flags(argv)
    if "config" not in flags:
        raise UserError("--config is missing; name a YAML file, e.g. --config configs/quickstart.yaml")
    path = flags.pop("config")
    overrides = {key: value for key, value in flags.items() if "." in key or key in ("name", "output_dir", "seed")}
    return read_experiment(path, overrides), {key: value for key, value in flags.items() if key not in overrides}


def read_experiment(path: str | Path, overrides: dict[str, str] | None = None) -> Experiment:
    """Read a YAML file, apply ``{"section.key": text}`` overrides, check everything.

    Raises:
        UserError: one line per mistake, each with file and line (or the flag), what was found and what was expected.
    """
    problems: list[str] = []
    entries = _read_yaml(Path(path), problems)
    for key, text in (overrides or {}).items():
        _add_override(entries, key, text, problems)
    values = {name: _read_section(name, entries, problems) for name in ["", *SECTIONS]}
    if problems:
        raise UserError("\n".join(problems))
    top = values.pop("")
    top["name"] = top.get("name") or Path(path).stem
    types_ = typing.get_type_hints(Experiment)
    experiment = Experiment(**top, **{name: types_[name](**section) for name, section in values.items()})
    problems = [f"{path}: {problem}" for problem in cross_check(experiment)]
    if problems:
        raise UserError("\n".join(problems))
    return experiment


def cross_check(experiment: Experiment) -> list[str]:
    """Mistakes that take two keys to see."""
    data, sids, sft, rl = experiment.data, experiment.sids, experiment.sft, experiment.rl
    rules = [
        (not re.fullmatch(r"[\w.-]+", experiment.name), f"name: got '{experiment.name}', expected letters, digits, '.', '_', '-'"),
        (data.source != "embedded" and not data.path,
         f"data.path: is empty, but data.source {data.source} needs a folder; pass --data.path FOLDER"),
        (len(data.split_ratios) != 3 or abs(sum(data.split_ratios) - 1) > 1e-6,
         f"data.split_ratios: got {data.split_ratios}, expected three shares (train, valid, test) that add up to 1"),
        (data.split == "own" and data.source in ("amazon", "embedded"),
         f"data.split: own needs a source that carries a split, {data.source} has none; use global_time or leave_one_out"),
        (sids.method == "given" and data.source != "minionerec",
         f"sids.method: given needs data.source minionerec, got {data.source}"),
        (not any(sft.tasks.values()), "sft.tasks: every task is off; give one a positive share"),
        (not any(rl.tasks.values()), "rl.tasks: every task is off; give one a positive share"),
        (not any(rl.rewards.values()), "rl.rewards: every weight is 0; give one a weight"),
        (rl.sync_ref_steps > 0 and rl.beta == 0, "rl.sync_ref_steps: has no effect with rl.beta 0; set it to 0"),
    ]
    for key in ("start", "end"):
        text = getattr(data, key)
        rules.append((bool(text) and not re.fullmatch(r"\d{4}-\d\d-\d\d", text), f"data.{key}: got '{text}', expected YYYY-MM-DD"))
    return [message for broken, message in rules if broken]


def describe_settings() -> str:
    """Every key with its default and meaning, for ``--help``."""
    lines = ["Settings (YAML keys; on the command line --section.key value):"]
    for section in ["", *SECTIONS]:
        kind = typing.get_type_hints(Experiment)[section] if section else Experiment
        lines.append(f"\n{section}: {kind.__doc__.strip().splitlines()[0]}" if section else "")
        for f in dataclasses.fields(kind):
            if f.name in SECTIONS and not section:
                continue
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            choices = f.metadata["choices"]
            one_of = f" [{', '.join(map(str, choices))}]" if choices else ""
            lines.append(f"  {section + '.' if section else ''}{f.name} = {default!r}\n      {f.metadata['meaning']}{one_of}")
    return "\n".join(lines)


def _split_flags(argv: list[str]) -> dict[str, str]:
    """``--key value`` and ``--key=value`` through Fire, which only collects: it runs nothing of a stage."""
    import fire

    repeated = {w for w in (word.split("=")[0] for word in argv if word.startswith("--")) if
                sum(other.split("=")[0] == w for other in argv) > 1}
    if repeated:
        raise UserError(f"command line: {sorted(repeated)[0]} is given twice; keep one")
    collected: dict[str, str] = {}

    @fire.decorators.SetParseFn(str)
    def collect(*words: str, **flags: str) -> None:
        if words:
            raise UserError(f"command line: got '{words[0]}', expected flags of the form --section.key value")
        collected.update(flags)

    fire.Fire(collect, command=argv, name="minionerec", serialize=lambda _: None)
    return collected


def _read_yaml(path: Path, problems: list[str]) -> dict[tuple[str, ...], Entry]:
    """The file's leaves as ``(section, key) -> Entry``; top-level keys have the section ``""``."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise UserError(f"{path}: no such file{hint}")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=_Plain)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}:1: got a {root.id}, expected 'key: value' lines")
    _check_nodes(root, path, problems)
    entries: dict[tuple[str, ...], Entry] = {}
    for key, node in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if key.value in SECTIONS:
            if isinstance(node, yaml.MappingNode):
                for sub, child in node.value:
                    entries[key.value, str(sub.value)] = Entry(f"{path}:{sub.start_mark.line + 1}", child)
            elif node.value:
                problems.append(f"{where}: {key.value}: got '{_text(node)}', expected a section of 'key: value' lines")
        else:
            entries["", str(key.value)] = Entry(where, node)
    return entries


def _check_nodes(node: yaml.Node, path: Path, problems: list[str]) -> None:
    """Repeated keys (the last one would win) and tags that would construct objects, at any depth."""
    if node.tag not in PLAIN_TAGS:
        problems.append(f"{path}:{node.start_mark.line + 1}: tag '{node.tag}' is not allowed; write plain values")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if str(key.value) in seen:
                problems.append(f"{path}:{line}: key '{key.value}' already set on line {seen[str(key.value)]}; keep one")
            seen.setdefault(str(key.value), line)
            _check_nodes(value, path, problems)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_nodes(value, path, problems)


def _add_override(entries: dict[tuple[str, ...], Entry], key: str, text: str, problems: list[str]) -> None:
    """``section.key`` replaces a value; ``section.key.name`` replaces one name of a mapping."""
    section, _, rest = key.rpartition(".") if key.count(".") < 2 else key.partition(".")
    name, _, member = rest.partition(".")
    where = f"command line: --{key}"
    if section not in ("", *SECTIONS):
        problems.append(f"{where}: unknown section '{section}'{_did_you_mean(section, SECTIONS)}")
        return
    try:
        node = yaml.compose(text, Loader=_Plain) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    except yaml.YAMLError:
        node = yaml.ScalarNode("tag:yaml.org,2002:str", text)
    if isinstance(node, yaml.ScalarNode):
        node = yaml.ScalarNode(node.tag, text)
    if not member:
        entries[section, name] = Entry(where, node)
        return
    before = entries[section, name].node if (section, name) in entries else yaml.compose(yaml.safe_dump(_default_of(section, name)))
    pairs = [(k, v) for k, v in before.value if k.value != member] if isinstance(before, yaml.MappingNode) else []
    merged = yaml.MappingNode("tag:yaml.org,2002:map", [*pairs, (yaml.ScalarNode("tag:yaml.org,2002:str", member), node)])
    entries[section, name] = Entry(where, merged)


def _default_of(section: str, name: str) -> Any:
    kind = typing.get_type_hints(Experiment)[section] if section else Experiment
    return getattr(kind(), name, {})


def _read_section(section: str, entries: dict[tuple[str, ...], Entry], problems: list[str]) -> dict[str, Any]:
    """The values of one section that are written down (for ``rl``: over those of its preset)."""
    kind = typing.get_type_hints(Experiment)[section] if section else Experiment
    declared = {f.name: f for f in dataclasses.fields(kind) if section or f.name not in SECTIONS}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for (owner, name), entry in entries.items():
        if owner != section:
            continue
        dotted = f"{section}.{name}" if section else name
        label = entry.where if entry.where.startswith("command line") else f"{entry.where}: {dotted}"
        if name not in declared:
            known = [*declared, *SECTIONS] if not section else list(declared)
            problems.append(f"{label}: unknown key '{name}'{_did_you_mean(name, known)}")
            continue
        try:
            values[name] = _convert(entry.node, hints[name])
            _check_range(values[name], declared[name].metadata)
        except ValueError as error:
            problems.append(f"{label}: {error}")
    if section == "rl" and values.get("preset") in RL_PRESETS:
        values = {**RL_PRESETS[values["preset"]], **values}
    return values


def _convert(node: yaml.Node, kind: Any) -> Any:
    """The node's text read as the declared type, whatever YAML would have guessed."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert(node, arguments[0])
    if kind is Any:
        return _Plain("").construct_document(node)
    if origin is list:
        children = node.value if isinstance(node, yaml.SequenceNode) else None
        if children is None and isinstance(node, yaml.ScalarNode) and node.value:
            children = [yaml.ScalarNode("tag:yaml.org,2002:str", part.strip()) for part in node.value.split(",")]
        if children is None:
            raise ValueError(f"got '{_text(node)}', expected a list")
        return [_convert(child, arguments[0]) for child in children]
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"got '{_text(node)}', expected 'name: value' pairs")
        return {str(key.value): _convert(child, arguments[1]) for key, child in node.value}
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"got a {node.id}, expected {_type_name(kind)}")
    return _convert_scalar(node.value, kind)


def _convert_scalar(text: str, kind: type) -> Any:
    wrong = ValueError(f"got '{text}', expected {_type_name(kind)}")
    if kind is str:
        return text
    if kind is bool:
        if text not in ("true", "false", "True", "False"):
            raise wrong
        return text.lower() == "true"
    if kind is int:
        if not re.fullmatch(r"[+-]?(0|[1-9]\d*)", text):
            raise wrong
        return int(text)
    try:
        value = float(text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(value):
        raise wrong
    return value


def _check_range(value: Any, limits: typing.Mapping[str, Any]) -> None:
    choices = limits["choices"]
    if choices:
        for word in value if isinstance(value, (list, dict)) else [value]:
            if word not in choices:
                raise ValueError(f"got '{word}', expected one of {', '.join(choices)}{_did_you_mean(word, choices)}")
    numbers = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        for key, sign, broken in (("low", ">=", lambda x, b: x < b), ("high", "<=", lambda x, b: x > b), ("above", ">", lambda x, b: x <= b)):
            if limits[key] is not None and broken(number, limits[key]):
                raise ValueError(f"got {number}, expected a number {sign} {limits[key]}")
    if isinstance(value, list) and not value:
        raise ValueError("got an empty list, expected at least one value")


class _Plain(yaml.SafeLoader):
    """Constructs the values of a free-form mapping (``model.config``); 1e-5 is a number there too."""


_Plain.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789"))


def _type_name(kind: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _text(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else f"a {node.id}"


def _did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


if __name__ == "__main__":
    with one_line_errors():
        read_experiment(sys.argv[1], _split_flags(sys.argv[2:]))
        print(f"{sys.argv[1]}: valid")
