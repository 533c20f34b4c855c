"""The figures of ``tests/style.py`` count what they say, and the code reaches its targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import style

EXAMPLE = '''"""A module's docstring."""

# a comment of its own
WIDE = "{wide}"  # one behind code


class Public:
    """Documented."""

    def bare(self, x):
        total = [y for y in x]
        return total

    def typed(self, x: int) -> int:
        """Two lines
        of docstring."""
        return x if x > 0 else -x

    def _hidden(self):
        return f"{{self}} and {{self}}"


def pairs(xs: list[int]) -> list[tuple[int, int]]:
    """Documented."""
    return [(a, b) for a in xs for b in xs]
'''


def test_every_figure_is_counted_as_its_name_says(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE.format(wide="x" * 100))
    figures = style.measure(path, root=tmp_path)
    assert sorted(figures.function_lengths) == [2, 2, 2, 3]
    # WIDE = "..."; class; def, list, return; def, return; def, return; def, return
    assert figures.tokens_per_line == [3, 3, 8, 9, 2, 12, 9, 6, 2, 21, 16]
    assert (figures.comprehensions, figures.nested_comprehensions, figures.ternaries) == (2, 1, 1)
    assert figures.comment_lines == 1
    assert figures.long_lines == ["example.py:4"]
    assert figures.undocumented == ["example.py:10 Public.bare"]
    assert figures.unannotated == ["example.py:10 Public.bare"]


def test_the_code_reaches_its_targets():
    missed = [target for target in style.targets(style.measure_rooms()) if not target.is_reached]
    assert [str(target) for target in missed] == [], (
        "`python tests/style.py --worst` has the places"
    )


def test_the_figures_are_printed_per_room():
    script = Path(style.__file__)
    run = subprocess.run(
        [sys.executable, script, "--worst"], capture_output=True, text=True, check=True
    )
    for room in ("minionerec/model", "rqvae", "(top level)", "total"):
        assert f"\n{room} " in run.stdout
