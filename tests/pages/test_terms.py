"""Rankings that were not made on the same terms say so wherever they stand side by side.

python -m pytest tests/pages/test_terms.py
"""

from __future__ import annotations

import compare
from minionerec import summary
from minionerec.evaluation.terms import footnotes, marked
from minionerec.experiment.stages import stage_path
from tests.pages.test_experiment_page import rank
from tests.rankings import committed, experiment, lists, rows_of
from tests.worlds import tiny_run

ALIKE = {"exclude_history": False, "beams": 50}


def test_only_what_stands_apart_from_most_is_marked():
    """Baselines know no beams: they neither differ nor count."""
    terms = {
        "markov": {"exclude_history": False},
        "SFT": ALIKE,
        "RL": ALIKE | {"exclude_history": True},
        "other": ALIKE | {"beams": 20},
    }
    assert list(marked(terms).values()) == ["markov", "SFT", "RL †", "other †"]
    assert footnotes(terms) == [
        "† exclude_history: false for markov, SFT, other; true for RL: not measured alike, so their "
        "figures do not compare",
        "† beams: 50 for SFT, RL; 20 for other: not measured alike, so their figures do not compare",
    ]
    assert footnotes({"SFT": ALIKE, "RL": ALIKE, "elsewhere": {}}) == []


def test_summary_page_and_comparison_mark_a_ranking_without_the_history(tmp_path, capsys):
    """As it came about: SFT was ranked first, then evaluate.exclude_history was set and RL ranked."""
    world = tiny_run(tmp_path)
    rank(world, "markov", 2)
    rank(world, "sft", 1)
    rank(world.changed({"evaluate.exclude_history": True}), "rl", 0)
    note = "† exclude_history: false for markov, SFT; true for RL: not measured alike"
    summary.main(world)
    printed = capsys.readouterr().out
    assert note in printed and "\nRL †  " in printed and "SFT †" not in printed
    assert "RL: not evaluated" not in printed
    page = (tmp_path / "tiny" / "report.html").read_text(encoding="utf-8")
    assert note in page and "RL †" in page


def test_a_comparison_notes_that_two_rules_were_asked_differently(tmp_path, capsys):
    made = experiment(tmp_path)
    rows = rows_of(stage_path(made, "data"))
    one = committed(made, "one", lists(rows, 1, 0.5), **{"evaluate.exclude_history": False})
    two = committed(made, "two", lists(rows, 2, 0.5), **{"evaluate.exclude_history": True})
    compare.main([str(one), str(two), "--samples", "100"])
    printed = capsys.readouterr().out
    assert (
        "\n† exclude_history: false for one; true for two: not measured alike, so their" in printed
    )
