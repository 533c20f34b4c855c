"""Figures of style, room by room: how long functions are, how dense lines are, what is documented.

    python tests/style.py            a table and the targets
    python tests/style.py --worst    the densest files, long lines, what lacks docstrings or types

Measured over everything that is shipped and no test. A *code line* holds at least one token that is
neither comment nor docstring; a string or f-string is one token, wherever it ends. Shares and rates
per 1,000 are of code lines, but for comment-only lines, whose share is of code and comment lines.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import token
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
NOT_PRODUCT = {"tests", "runs", "datasets", "build"}
NO_CODE = {
    token.COMMENT,
    token.NL,
    token.NEWLINE,
    token.INDENT,
    token.DEDENT,
    token.ENCODING,
    token.ENDMARKER,
}
# From Python 3.12 an f-string is several tokens; here it counts as one on every version.
FSTRING_START = getattr(token, "FSTRING_START", -1)
FSTRING_END = getattr(token, "FSTRING_END", -1)

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTIONS, ast.ClassDef, ast.Module)


@dataclass
class Figures:
    """What was counted in one file, or in several together."""

    function_lengths: list[int] = field(default_factory=list)
    tokens_per_line: list[int] = field(default_factory=list)
    comment_lines: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    ternaries: int = 0
    long_lines: list[str] = field(default_factory=list)
    undocumented: list[str] = field(default_factory=list)
    unannotated: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Count ``other`` in as well."""
        self.function_lengths += other.function_lengths
        self.tokens_per_line += other.tokens_per_line
        self.comment_lines += other.comment_lines
        self.comprehensions += other.comprehensions
        self.nested_comprehensions += other.nested_comprehensions
        self.ternaries += other.ternaries
        self.long_lines += other.long_lines
        self.undocumented += other.undocumented
        self.unannotated += other.unannotated

    @property
    def code_lines(self) -> int:
        """Lines with at least one token of code."""
        return len(self.tokens_per_line)

    @property
    def mean_tokens(self) -> float:
        """Mean number of tokens per code line."""
        return statistics.fmean(self.tokens_per_line or [0])

    @property
    def long_share(self) -> float:
        """Lines wider than 100 columns, in per cent of code lines."""
        return 100 * len(self.long_lines) / max(self.code_lines, 1)

    @property
    def comment_share(self) -> float:
        """Comment-only lines in per cent of code and comment-only lines."""
        return 100 * self.comment_lines / max(self.code_lines + self.comment_lines, 1)

    def per_thousand(self, count: int) -> float:
        """``count`` per 1,000 code lines."""
        return 1000 * count / max(self.code_lines, 1)


def product_files(root: Path = ROOT) -> list[Path]:
    """Every Python file that is no test, in order; folders that begin with a dot are left out."""
    found = sorted(root.glob("*.py"))
    for folder in sorted(root.iterdir()):
        is_product = folder.name not in NOT_PRODUCT and not folder.name.startswith(".")
        if folder.is_dir() and is_product:
            found += sorted(folder.rglob("*.py"))
    return found


def room_of(path: Path, root: Path = ROOT) -> str:
    """Where a file counts in the table: its room in ``minionerec/``, else its first folder."""
    parts = path.relative_to(root).parts[:-1]
    if not parts:
        return "(top level)"
    if parts[0] == "minionerec":
        return "/".join(parts[:2])
    return parts[0]


def docstring_of(node: ast.AST) -> ast.Expr | None:
    """The statement that holds a module's, class's or function's docstring."""
    if not isinstance(node, DOCUMENTED) or not node.body:
        return None
    first = node.body[0]
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return None
    return first if isinstance(first.value.value, str) else None


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    docstring = docstring_of(function)
    documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - documented


def is_public(name: str) -> bool:
    """Whether a name is meant for others; ``__call__`` and its like speak for themselves."""
    return not name.startswith("_")


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods with their dotted names, none from inside functions."""
    for node in tree.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or not is_public(node.name):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, FUNCTIONS) and is_public(member.name):
                    yield f"{node.name}.{member.name}", member


def is_annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether every argument but ``self`` and ``cls`` and the result have a type."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    for argument in named + starred:
        if argument.annotation is None and argument.arg not in ("self", "cls"):
            return False
    return function.returns is not None


def tokens_by_line(source: str, docstring_lines: set[int]) -> tuple[dict[int, int], int]:
    """Number of tokens on each code line, and the number of comment-only lines."""
    counts: dict[int, int] = {}
    comments = set()
    depth = 0
    for piece in tokenize.generate_tokens(io.StringIO(source).readline):
        line = piece.start[0]
        if piece.type == token.COMMENT:
            comments.add(line)
        if piece.type == FSTRING_END:
            depth -= 1
            continue
        within_fstring = depth > 0
        if piece.type == FSTRING_START:
            depth += 1
        if within_fstring or piece.type in NO_CODE or line in docstring_lines:
            continue
        counts[line] = counts.get(line, 0) + 1
    return counts, len(comments - counts.keys())


def count_nested(tree: ast.Module) -> int:
    """Comprehensions that hold another one or have a second ``for``."""
    nested = 0
    for node in ast.walk(tree):
        if not isinstance(node, COMPREHENSIONS):
            continue
        inner = [other for other in ast.walk(node) if isinstance(other, COMPREHENSIONS)]
        if len(inner) > 1 or len(node.generators) > 1:
            nested += 1
    return nested


def measure(path: Path, root: Path = ROOT) -> Figures:
    """The figures of one file."""
    source = path.read_text()
    tree = ast.parse(source)
    where = path.relative_to(root)
    figures = Figures()

    docstring_lines: set[int] = set()
    for node in ast.walk(tree):
        docstring = docstring_of(node)
        if docstring is not None:
            docstring_lines.update(range(docstring.lineno, docstring.end_lineno + 1))
        if isinstance(node, FUNCTIONS):
            figures.function_lengths.append(length_of(node))
        figures.comprehensions += isinstance(node, COMPREHENSIONS)
        figures.ternaries += isinstance(node, ast.IfExp)
    figures.nested_comprehensions = count_nested(tree)

    counts, figures.comment_lines = tokens_by_line(source, docstring_lines)
    figures.tokens_per_line = list(counts.values())
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) > WIDTH:
            figures.long_lines.append(f"{where}:{number}")

    for name, node in public_definitions(tree):
        if docstring_of(node) is None:
            figures.undocumented.append(f"{where}:{node.lineno} {name}")
        if isinstance(node, FUNCTIONS) and not is_annotated(node):
            figures.unannotated.append(f"{where}:{node.lineno} {name}")
    return figures


def measure_rooms(root: Path = ROOT) -> dict[str, Figures]:
    """The figures of every room, and of all together as ``total``."""
    rooms: dict[str, Figures] = {}
    total = Figures()
    for path in product_files(root):
        figures = measure(path, root)
        rooms.setdefault(room_of(path, root), Figures()).add(figures)
        total.add(figures)
    return {**rooms, "total": total}


@dataclass(frozen=True)
class Target:
    """One figure that the code must reach."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "ok  " if self.is_reached else "MISS"
        return f"{verdict} {self.name:<48} {self.value:6.2f}  {sign} {self.limit:g}"


def targets(rooms: dict[str, Figures]) -> list[Target]:
    """What is asked of the whole, and of the mathematics in model/ and training/."""
    total = rooms["total"]
    comprehensions = total.per_thousand(total.comprehensions)
    asked = [
        Target("mean tokens per line", total.mean_tokens, 8.5),
        Target("comprehensions per 1,000 lines", comprehensions, 40),
        Target(f"lines over {WIDTH} columns, %", total.long_share, 1),
        Target("public definitions without docstring", len(total.undocumented), 0),
        Target("public functions without annotations", len(total.unannotated), 0),
    ]
    for room in ("minionerec/model", "minionerec/training"):
        share = rooms[room].comment_share
        asked.append(Target(f"comment-only lines in {room}, %", share, 6, at_least=True))
    return asked


def quantile(values: list[int], share: float) -> int:
    """The smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0


def table(rooms: dict[str, Figures]) -> str:
    """One line per room."""
    lines = [
        f"{'':<22}  code function lines   >100 tokens/line  per 1,000 code lines comment   without",
        f"{'room':<22} lines  med  p90 longest   %    mean  p90"
        "  compr. nested ternary  only %  doc types",
    ]
    for room, figures in rooms.items():
        lengths = figures.function_lengths
        cells = [
            f"{room:<22}{figures.code_lines:>6}",
            f"{quantile(lengths, 0.5):>5}{quantile(lengths, 0.9):>5}{max(lengths, default=0):>8}",
            f"{figures.long_share:>7.1f}",
            f"{figures.mean_tokens:>7.1f}{quantile(figures.tokens_per_line, 0.9):>5}",
            f"{figures.per_thousand(figures.comprehensions):>7.0f}",
            f"{figures.per_thousand(figures.nested_comprehensions):>6.1f}",
            f"{figures.per_thousand(figures.ternaries):>7.0f}",
            f"{figures.comment_share:>8.1f}",
            f"{len(figures.undocumented):>6}{len(figures.unannotated):>6}",
        ]
        lines.append(" ".join(cells))
    return "\n".join(lines)


def worst() -> str:
    """Where to begin: the densest files, then every long line and every gap."""
    measured = [(measure(path), path.relative_to(ROOT)) for path in product_files()]
    lines = ["tokens/line  compr./1,000  code lines  file"]
    for figures, path in sorted(measured, key=lambda pair: -pair[0].mean_tokens):
        rate = figures.per_thousand(figures.comprehensions)
        lines.append(f"{figures.mean_tokens:11.1f}{rate:14.0f}{figures.code_lines:12}  {path}")
    for figures, _ in measured:
        lines += [f"over {WIDTH} columns: {place}" for place in figures.long_lines]
        lines += [f"no docstring: {place}" for place in figures.undocumented]
        lines += [f"no annotations: {place}" for place in figures.unannotated]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--worst" in sys.argv[1:]:
        print(worst())
    rooms = measure_rooms()
    print(table(rooms), end="\n\n")
    print(*targets(rooms), sep="\n")
