"""Reads one YAML file and the command line into an ``Experiment``, or says on one line per mistake what to change.

The declared type of a key decides how its text is read (``1e-5`` is a float, ``no`` is never a bool), a key that is
written twice or not declared in ``minionerec/experiment/settings.py`` is an error, and all mistakes are reported together. Nothing
heavier than PyYAML is imported here, so a bad file stops a run within a second.

    python -m minionerec.experiment.config --config configs/quickstart.yaml --sft.epochs 3     # check only
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import operator
import re
import sys
import typing
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.settings import MOVED, RL_PRESETS, Experiment, SFTSettings

SECTIONS = [
    f.name for f in dataclasses.fields(Experiment) if f.default_factory is not dataclasses.MISSING
]
TOP_LEVEL = [f.name for f in dataclasses.fields(Experiment) if f.name not in SECTIONS]
TAG = "tag:yaml.org,2002:"
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
BOUNDS = (("low", ">=", operator.ge), ("high", "<=", operator.le), ("above", ">", operator.gt))


class _Plain(yaml.SafeLoader):
    """YAML without the parts that surprise: no aliases (they can grow without bound), no tags (they construct objects),
    and only true and false are bools, only decimal digits are numbers, 1e-5 among them."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, but an alias or a tag is refused."""
        event, problem = self.peek_event(), ""
        if isinstance(event, yaml.AliasEvent):
            problem = f"'*{event.anchor}' repeats another value; write it out"
        elif event.tag is not None:
            problem = f"tag '{event.tag.replace(TAG, '!!')}' is not allowed; write plain values"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


INT = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})$")
FLOAT = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$")
_Plain.add_implicit_resolver(f"{TAG}null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Plain.add_implicit_resolver(f"{TAG}bool", re.compile(r"(true|True|false|False)$"), list("tTfF"))
_Plain.add_implicit_resolver(f"{TAG}int", INT, list("+-0123456789"))
_Plain.add_implicit_resolver(f"{TAG}float", FLOAT, list("+-.0123456789"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One value as written: where (``file:line`` or ``command line``) and its YAML node."""

    where: str
    node: yaml.Node


def read_command_line(
    usage: str, argv: list[str] | None = None, own: Collection[str] | None = None
) -> tuple[Experiment, dict[str, str]]:
    """Read ``--config C --section.key value ...``.

    Args:
        usage: the script's docstring, printed before the keys on ``--help``.
        argv: the words after the script's name; the process's own by default.
        own: flags that belong to the script (``{"history", "k"}``), every other one is a mistake; None leaves it to the
            script to look at what it gets.

    Returns:
        The experiment, and the flags without a dot, which belong to the script.

    Raises:
        UserError: with every mistake on a line of its own.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(usage.strip() + "\n\n" + describe_settings())
        sys.exit(0)
    flags = _split_flags(argv)
    if "config" not in flags:
        raise UserError(
            "--config is missing; name a YAML file, e.g. --config configs/quickstart.yaml"
        )
    path = flags.pop("config")
    scripts = {
        key: value
        for key, value in flags.items()
        if (key in own if own is not None else "." not in key and key not in TOP_LEVEL)
    }
    return read_experiment(
        path, {key: value for key, value in flags.items() if key not in scripts}
    ), scripts


def read_experiment(path: str | Path, overrides: dict[str, str] | None = None) -> Experiment:
    """Read a YAML file, apply ``{"section.key": text}`` overrides, check everything.

    Raises:
        UserError: one line per mistake, each with file and line (or the flag), what was found and what was expected.
    """
    problems: list[str] = []
    entries = _read_yaml(Path(path), problems)
    for key, text in sorted(
        (overrides or {}).items(), key=lambda pair: pair[0] != "rl.preset"
    ):  # presets first
        _add_override(entries, key, text, problems)
    values = _read_values(entries, problems)
    if problems:
        raise UserError("\n".join(problems))
    top = values.pop("")
    top["name"] = top.get("name") or Path(path).stem
    types_ = typing.get_type_hints(Experiment)
    experiment = Experiment(
        **top, **{name: types_[name](**section) for name, section in values.items()}
    )
    problems = [f"{path}: {problem}" for problem in cross_check(experiment)]
    if problems:
        raise UserError("\n".join(problems))
    return experiment


def cross_check(experiment: Experiment) -> list[str]:
    """Mistakes that take two keys to see, or more than a type and a range."""
    data, sids, model, sft, rl = (
        experiment.data,
        experiment.sids,
        experiment.model,
        experiment.sft,
        experiment.rl,
    )
    rules = [
        (
            not re.fullmatch(r"\w[\w.-]*", experiment.name),
            f"name: got '{experiment.name}', expected letters, digits, '.', '_', '-', beginning with a letter or digit",
        ),
        (
            data.source != "embedded" and not data.path,
            f"data.path: is empty, but data.source {data.source} needs a folder; pass --data.path FOLDER",
        ),
        (
            data.source != "tables" and bool(data.columns),
            f"data.columns: has no effect with data.source {data.source}; only tables have columns to name",
        ),
        (
            len(data.split_ratios) != 3 or abs(sum(data.split_ratios) - 1) > 1e-6,
            f"data.split_ratios: got {data.split_ratios}, expected three shares (train, valid, test) that add up to 1",
        ),
        (
            data.split == "own" and data.source in ("amazon", "embedded"),
            f"data.split: own needs a source that carries a split, {data.source} has none; use global_time or leave_one_out",
        ),
        (
            sids.method == "given" and data.source != "minionerec",
            f"sids.method: given needs data.source minionerec, got {data.source}",
        ),
        (
            sids.last_level == "fsq" and sids.method not in ("rqkmeans", "balanced_rqkmeans"),
            f"sids.last_level: fsq needs sids.method rqkmeans or balanced_rqkmeans, got {sids.method}",
        ),
        (
            model.backbone == "scratch" and "model_type" not in model.config,
            "model.config: has no model_type, which a model from scratch needs; write e.g. model_type: qwen2",
        ),
        (not any(sft.tasks.values()), "sft.tasks: every task is off; give one a positive share"),
        *_soft_label_rules(sft),
        *_fusion_rules(experiment.evaluate.fusion),
        (not any(rl.tasks.values()), "rl.tasks: every task is off; give one a positive share"),
        (not any(rl.rewards.values()), "rl.rewards: every weight is 0; give one a weight"),
        (
            rl.sync_ref_steps > 0 and rl.beta == 0,
            "rl.sync_ref_steps: has no effect with rl.beta 0; set it to 0",
        ),
        (
            not experiment.evaluate.checkpoint,
            "evaluate.checkpoint: is empty, expected sft, rl or the folder of a checkpoint",
        ),
    ]
    return [message for broken, message in rules if broken] + _date_problems(data.start, data.end)


def _soft_label_rules(sft: SFTSettings) -> list[tuple[bool, str]]:
    """What may be wrong with ``sft.soft_labels`` and its teacher, and how to say it."""
    if not sft.soft_labels:
        return []
    given = sft.soft_labels
    top_k = given.get("top_k", 1)
    items = given.get("items", 1)
    rules = [
        (
            items != int(items),
            f"sft.soft_labels: items: got {items:g}, expected a whole number from 0",
        ),
        (
            top_k < 1 or top_k != int(top_k),
            f"sft.soft_labels: top_k: got {top_k:g}, expected a whole number from 1",
        ),
        (
            given.get("temperature") == 0,
            "sft.soft_labels: temperature: got 0, expected a number above 0",
        ),
        (
            bool(sft.teacher) and not any(sft.teacher.values()),
            "sft.teacher: every weight is 0, but sft.soft_labels asks it; give a ranker a weight",
        ),
    ]
    for key in ("weight", "final_weight"):
        value = given.get(key, 0)
        rules.append((value > 1, f"sft.soft_labels: {key}: got {value:g}, expected at most 1"))
    return rules


def _fusion_rules(fusion: dict[str, float]) -> list[tuple[bool, str]]:
    """What may be wrong with ``evaluate.fusion``, and how to say it."""
    weights = [value for key, value in fusion.items() if key != "temperature"]
    return [
        (
            bool(fusion) and not any(weights),
            "evaluate.fusion: every weight is 0; give the model or a ranker a weight, or {} for none",
        ),
        (
            fusion.get("temperature") == 0,
            "evaluate.fusion: temperature: got 0, expected a number above 0",
        ),
    ]


def _date_problems(start: str, end: str) -> list[str]:
    """What is wrong with the time window: a text that is no day, or a window that holds none."""
    days, problems = {}, []
    for key, text in (("start", start), ("end", end)):
        try:
            days[key] = (
                datetime.date.fromisoformat(text)
                if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text)
                else None
            )
        except ValueError:
            days[key] = None
        if text and not days[key]:
            problems.append(f"data.{key}: got '{text}', expected a day as YYYY-MM-DD")
    if days["start"] and days["end"] and days["start"] >= days["end"]:
        problems.append(f"data.end: got '{end}', expected a day after data.start '{start}'")
    return problems


def describe_settings() -> str:
    """Every key with its default and meaning, for ``--help``."""
    lines = ["Settings (YAML keys; on the command line --section.key value):"]
    for section in ["", *SECTIONS]:
        kind = _settings_of(section)
        lines.append(f"\n{section}: {kind.__doc__.strip().splitlines()[0]}" if section else "")
        for f in dataclasses.fields(kind):
            if f.name in SECTIONS and not section:
                continue
            default = (
                f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            )
            choices = f.metadata["choices"]
            one_of = f" [{', '.join(map(str, choices))}]" if choices else ""
            lines.append(
                f"  {section + '.' if section else ''}{f.name} = {default!r}\n      {f.metadata['meaning']}{one_of}"
            )
    return "\n".join(lines)


def _split_flags(argv: list[str]) -> dict[str, str]:
    """``--key value`` and ``--key=value`` as ``{key: text}``; every flag has a value, so that none is half understood."""
    flags: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word == "--":
            raise UserError(
                f"command line: got '{word}', expected flags of the form --section.key value"
            )
        key, equals, text = word[2:].partition("=")
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise UserError(f"command line: --{key} has no value; write --{key} VALUE")
        if key in flags:
            raise UserError(f"command line: --{key} is given twice; keep one")
        flags[key] = text
    return flags


def _read_yaml(path: Path, problems: list[str]) -> dict[tuple[str, ...], Entry]:
    """The file's leaves as ``(section, key) -> Entry``; top-level keys have the section ``""``."""
    root = _compose_file(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{path}:{root.start_mark.line + 1}: got {_text(root)}, expected 'key: value' lines"
        )
    _check_nodes(root, str(path), problems)
    entries: dict[tuple[str, ...], Entry] = {}
    for key, node in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if key.value not in SECTIONS:
            entries["", str(key.value)] = Entry(where, node)
        elif isinstance(node, yaml.MappingNode):
            for sub, child in node.value:
                entries[key.value, str(sub.value)] = Entry(
                    f"{path}:{sub.start_mark.line + 1}", child
                )
        elif node.tag != f"{TAG}null":
            problems.append(
                f"{where}: {key.value}: got {_text(node)}, expected a section of 'key: value' lines"
            )
    return entries


def _compose_file(path: Path) -> yaml.Node | None:
    """The file as YAML nodes; None when it holds nothing but comments."""
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.yaml")], n=1
        )
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise UserError(f"{path}: no such file{hint}")
    try:
        return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=_Plain)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        context = f"{error.context}, " if error.problem.startswith("but ") else ""
        advice = "; indent with spaces" if "'\\t'" in error.problem else ""
        raise UserError(
            f"{path}:{error.problem_mark.line + 1}: YAML: {context}{error.problem}{advice}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(
            f"{path}: is nested too deeply; expected sections of 'key: value' lines"
        ) from None


def _check_nodes(node: yaml.Node, where: str, problems: list[str]) -> None:
    """Keys that are no words, and repeated keys (the last one would win), at any depth.

    Args:
        where: a file, to which the line is added, or a flag.
    """
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_nodes(value, where, problems)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        place = where if where.startswith("command line") else f"{where}:{line}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{place}: got {_text(key)} as a key, expected a word")
        if key.value in seen:
            problems.append(
                f"{place}: key '{key.value}' already set on line {seen[key.value]}; keep one"
            )
        seen.setdefault(key.value, line)
        _check_nodes(value, where, problems)


def _add_override(
    entries: dict[tuple[str, ...], Entry], key: str, text: str, problems: list[str]
) -> None:
    """``section.key`` replaces a value; ``section.key.name`` replaces one name of a mapping."""
    section, name, *members = key.split(".") if "." in key else ("", key)
    where = f"command line: --{key}"
    node = _node_of_text(text)
    _check_nodes(node, where, problems)
    if section not in ("", *SECTIONS):
        problems.append(f"{where}: unknown section '{section}'{_did_you_mean(section, SECTIONS)}")
    elif len(members) > 1:
        problems.append(
            f"{where}: has too many parts; write --{section}.{name}.{members[0]} '{{{members[1]}: ...}}'"
        )
    elif members:
        before = (
            entries[section, name].node
            if (section, name) in entries
            else _default_node(section, name, entries)
        )
        pairs = (
            [(k, v) for k, v in before.value if k.value != members[0]]
            if isinstance(before, yaml.MappingNode)
            else []
        )
        pairs.append((yaml.ScalarNode(f"{TAG}str", members[0]), node))
        entries[section, name] = Entry(where, yaml.MappingNode(f"{TAG}map", pairs))
    else:
        entries[section, name] = Entry(where, node)


def _node_of_text(text: str) -> yaml.Node:
    """A list or mapping when the text is one in YAML's [..] or {..} form, else the text as it stands."""
    try:
        node = yaml.compose(text, Loader=_Plain)
    except yaml.YAMLError:
        node = None
    if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) and text.lstrip()[:1] in ("[", "{"):
        return node
    return yaml.ScalarNode(node.tag if isinstance(node, yaml.ScalarNode) else f"{TAG}str", text)


def _default_node(section: str, name: str, entries: dict[tuple[str, ...], Entry]) -> yaml.Node:
    """The value that a key has where it is not written down (for ``rl``: its preset's)."""
    values = {
        f.name: getattr(_settings_of(section)(), f.name)
        for f in dataclasses.fields(_settings_of(section))
    }
    if section == "rl" and ("rl", "preset") in entries:
        values.update(RL_PRESETS.get(str(entries["rl", "preset"].node.value), {}))
    return yaml.compose(yaml.safe_dump(values.get(name, {}), sort_keys=False), Loader=_Plain)


def _settings_of(section: str) -> type:
    """The dataclass of a section; ``""`` is the top level."""
    return typing.get_type_hints(Experiment)[section] if section else Experiment


def _read_values(
    entries: dict[tuple[str, ...], Entry], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """``{section: {key: value}}`` of what is written down (for ``rl``: over the values of its preset)."""
    values: dict[str, dict[str, Any]] = {section: {} for section in ["", *SECTIONS]}
    for (section, name), entry in entries.items():
        kind = _settings_of(section)
        declared = {f.name: f for f in dataclasses.fields(kind) if section or f.name in TOP_LEVEL}
        dotted = f"{section}.{name}" if section else name
        label = (
            entry.where if entry.where.startswith("command line") else f"{entry.where}: {dotted}"
        )
        if dotted in MOVED:
            from_flag = entry.where.startswith("command line")
            advice = f"pass --{MOVED[dotted]}" if from_flag else "move it there"
            problems.append(f"{label}: is now {MOVED[dotted]}; {advice}")
            continue
        if name not in declared:
            problems.append(f"{label}: unknown key{_nearest_key(section, name)}")
            continue
        try:
            value = _convert(entry.node, typing.get_type_hints(kind)[name])
            _check_range(value, declared[name].metadata)
            values[section][name] = value
        except ValueError as error:
            problems.append(f"{label}: {error}")
    values["rl"] = {**RL_PRESETS.get(values["rl"].get("preset", "default"), {}), **values["rl"]}
    return values


def _convert(node: yaml.Node, kind: Any) -> Any:
    """The node's text read as the declared type, whatever YAML would have guessed."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _Plain("").construct_document(node)
    if origin is list:
        if isinstance(node, yaml.SequenceNode):
            return [_convert(child, arguments[0]) for child in node.value]
        if isinstance(node, yaml.ScalarNode) and node.value:
            return [_convert_scalar(part.strip(), arguments[0]) for part in node.value.split(",")]
        raise ValueError(f"got {_text(node)}, expected a list")
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"got {_text(node)}, expected 'name: value' pairs")
        return {key.value: _convert(child, arguments[1]) for key, child in node.value}
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"got {_text(node)}, expected {TYPE_NAMES[kind]}")
    if kind is str and node.tag == f"{TAG}null":
        return ""
    return _convert_scalar(node.value, kind)


def _convert_scalar(text: str, kind: type) -> Any:
    """``"1e-5"`` as a float, ``"3"`` as an int, ``"true"`` as a bool; text stays text.

    Raises:
        ValueError: the text is not one of that type (``yes`` is no bool, ``3.0`` no int, ``nan`` no number).
    """
    wrong = ValueError(f"got '{text}', expected {TYPE_NAMES[kind]}")
    if kind is str:
        return text
    if kind is bool:
        if text not in ("true", "false", "True", "False"):
            raise wrong
        return text.lower() == "true"
    if kind is int:
        if not INT.match(text):
            raise wrong
        return int(text)
    if not FLOAT.match(text) or not math.isfinite(float(text)):
        raise wrong
    return float(text)


def _check_range(value: Any, limits: typing.Mapping[str, Any]) -> None:
    choices = limits["choices"]
    if choices:
        for word in value if isinstance(value, (list, dict)) else [value]:
            if word not in choices:
                raise ValueError(
                    f"got '{word}', expected one of {', '.join(choices)}{_did_you_mean(word, choices)}"
                )
    numbers = (
        list(value.values())
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else [value]
    )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        for key, sign, holds in BOUNDS:
            if limits[key] is not None and not holds(number, limits[key]):
                shown = f"{number:g}" if isinstance(number, float) else number
                raise ValueError(f"got {shown}, expected a number {sign} {limits[key]}")
    if isinstance(value, list) and not value:
        raise ValueError("got an empty list, expected at least one value")


def _text(node: yaml.Node) -> str:
    """A node in an error: ``'text'``, or what it is when it is no text."""
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "'name: value' pairs"


def _nearest_key(section: str, name: str) -> str:
    """Where an unknown key may belong: a similar one of its section, or the same one of another."""
    if not section and name in SECTIONS:
        return f"; it is a section, write {name}.KEY"
    keys = {
        owner: [f.name for f in dataclasses.fields(_settings_of(owner))]
        for owner in ["", *SECTIONS]
    }
    near = difflib.get_close_matches(name, keys[section], n=1)
    elsewhere = [
        f"{owner}.{name}" if owner else name
        for owner in keys
        if owner != section and name in keys[owner]
    ]
    guesses = near or elsewhere
    return f"; did you mean {' or '.join(repr(guess) for guess in guesses)}?" if guesses else ""


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


if __name__ == "__main__":
    with one_line_errors():
        print(f"{read_command_line(__doc__, own=())[0].name}: valid")
