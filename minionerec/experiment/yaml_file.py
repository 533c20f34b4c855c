"""Reads a YAML file into entries that remember where they were written, and refuses what surprises.

There are no aliases, no tags, no key that is written twice, and the text of a value stays as it is
written until ``minionerec/experiment/config.py`` knows which type the key has.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minionerec.errors import UserError, relative_to

TAG = "tag:yaml.org,2002:"
INT = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})$")
FLOAT = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$")


class PlainLoader(yaml.SafeLoader):
    """YAML without the parts that surprise.

    No aliases (they can grow without bound), no tags (they construct objects), only true and false
    are bools, and only decimal digits are numbers, 1e-5 among them.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML's, but an alias or a tag is refused."""
        event = self.peek_event()
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = f"'*{event.anchor}' repeats another value; write it out"
        elif event.tag is not None:
            problem = f"tag '{event.tag.replace(TAG, '!!')}' is not allowed; write plain values"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


PlainLoader.add_implicit_resolver(
    f"{TAG}null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
PlainLoader.add_implicit_resolver(
    f"{TAG}bool", re.compile(r"(true|True|false|False)$"), list("tTfF")
)
PlainLoader.add_implicit_resolver(f"{TAG}int", INT, list("+-0123456789"))
PlainLoader.add_implicit_resolver(f"{TAG}float", FLOAT, list("+-.0123456789"))


@dataclass(frozen=True)
class Entry:
    """One value as written.

    Attributes:
        where: ``file:line``, or ``command line: --flag``.
        node: its YAML.
    """

    where: str
    node: yaml.Node


# (section, key) -> value; the section of a key of the top level is ""
Entries = dict[tuple[str, str], Entry]


def read_entries(path: Path, sections: Sequence[str], problems: list[str]) -> Entries:
    """Read a file's values in the order in which they are written.

    Args:
        path: of the file.
        sections: the keys of the top level that hold keys of their own.
        problems: takes up what is wrong with single lines.

    Raises:
        UserError: the file is no YAML of this kind at all.
    """
    root = _compose_file(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise UserError(f"{path}:{line}: got {text_of(root)}, expected 'key: value' lines")
    check_keys(root, str(path), problems)
    entries: Entries = {}
    for key, node in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if key.value not in sections:
            entries["", str(key.value)] = Entry(where, node)
        elif isinstance(node, yaml.MappingNode):
            for inner, value in node.value:
                line = inner.start_mark.line + 1
                entries[key.value, str(inner.value)] = Entry(f"{path}:{line}", value)
        elif node.tag != f"{TAG}null":
            found = f"{key.value}: got {text_of(node)}"
            problems.append(f"{where}: {found}, expected a section of 'key: value' lines")
    return entries


def check_keys(node: yaml.Node, where: str, problems: list[str]) -> None:
    """Find repeated keys (the last one would win) at any depth.

    Args:
        node: the root of what is looked at.
        where: a file, to which the line is added, or ``command line: --flag``.
        problems: takes up what is found.

    Raises:
        UserError: a key is no word.
    """
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            check_keys(value, where, problems)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        place = where if where.startswith("command line") else f"{where}:{line}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{place}: got {text_of(key)} as a key, expected a word")
        if key.value in lines:
            before = lines[key.value]
            problems.append(f"{place}: key '{key.value}' already set on line {before}; keep one")
        lines.setdefault(key.value, line)
        check_keys(value, where, problems)


def node_of_flag(text: str) -> yaml.Node:
    """A list or mapping when the text is one in YAML's [..] or {..} form, else the text itself."""
    try:
        node = yaml.compose(text, Loader=PlainLoader)
    except yaml.YAMLError:
        node = None
    is_collection = text.lstrip().startswith(("[", "{"))
    if is_collection and isinstance(node, (yaml.SequenceNode, yaml.MappingNode)):
        return node
    tag = node.tag if isinstance(node, yaml.ScalarNode) else f"{TAG}str"
    return yaml.ScalarNode(tag, text)


def node_of_value(value: Any) -> yaml.Node:
    """The YAML of a value, as if it were written in a file."""
    node = yaml.compose(yaml.safe_dump(value, sort_keys=False), Loader=PlainLoader)
    return node or yaml.ScalarNode(f"{TAG}null", "")


def with_member(mapping: yaml.Node, name: str, value: yaml.Node) -> yaml.MappingNode:
    """A copy of a mapping in which one name has another value; of anything else, only that name."""
    pairs = []
    if isinstance(mapping, yaml.MappingNode):
        pairs = [pair for pair in mapping.value if pair[0].value != name]
    pairs.append((yaml.ScalarNode(f"{TAG}str", name), value))
    return yaml.MappingNode(f"{TAG}map", pairs)


def value_of(node: yaml.Node) -> Any:
    """A node as Python values, whose types are those that the text looks like."""
    return PlainLoader("").construct_document(node)


def is_null(node: yaml.Node) -> bool:
    """Whether nothing is written, or ``null``."""
    return bool(node.tag == f"{TAG}null")


def text_of(node: yaml.Node) -> str:
    """A node in an error: ``'text'``, or what it is when it is no text."""
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "'name: value' pairs"


def _compose_file(path: Path) -> yaml.Node | None:
    """The file as YAML nodes; None when it holds nothing but comments."""
    if not path.is_file():
        files = [file.name for file in path.parent.glob("*.yaml")]
        near = difflib.get_close_matches(path.name, files, n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise UserError(f"{path}: no such file{relative_to(path)}{hint}")
    try:
        return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=PlainLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        problem = error.problem or "cannot be read"
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        advice = "; indent with spaces" if "'\\t'" in problem else ""
        raise UserError(f"{place}: YAML: {problem}{advice}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        advice = "expected sections of 'key: value' lines"
        raise UserError(f"{path}: is nested too deeply; {advice}") from None
