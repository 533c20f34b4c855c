"""Stage 1's pages: the report, its verdict, the comparison of methods; and what they look like in a browser.

python -m pytest tests/rqvae/test_sids_page.py
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minionerec.errors import UserError
from minionerec.experiment.manifest import Parent, read_manifest
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.pages.charts import Line, chart, nice_step
from rqvae import build_sids, compare, embed_items
from rqvae.report import crowd_curves, usage_curve
from rqvae.verdict import verdict
from tests.browser import NASTY, browse, parsed, widths
from tests.rqvae.test_sids_stage import embed_by_hand, world

METHODS = "rqkmeans,balanced_rqkmeans,random"


def nasty_world(folder: Path, **sids):
    """A world whose first title, also that of a listing of its own, tries to leave its table cell."""
    experiment = world(folder, **sids)
    path = stage_path(experiment, "data") / "items.parquet"
    items = pd.read_parquet(path)
    embed_by_hand(experiment)
    items.loc[[0, 39], "title"] = NASTY
    items.to_parquet(path)
    return experiment


def test_the_report_page_stands_alone_and_escapes_titles(tmp_path, monkeypatch):

    def open_unseen(experiment, stage):
        """As ``open_stage``, but the data was edited behind its manifest's back."""
        path = stage_path(experiment, stage)
        return Parent(path, read_manifest(path)["manifest_sha256"])

    monkeypatch.setattr(build_sids, "open_stage", open_unseen)
    experiment = nasty_world(tmp_path)
    build_sids.main(experiment)
    text, links = parsed(stage_path(experiment, "sids") / "report.html")
    assert links.fetched == [] and links.scripts == 0 and links.open == []
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert NASTY in links.texts
    for section in (
        "Go or no-go",
        "Levels",
        "Collisions",
        "Meaning of prefixes",
        "Trie",
        "Largest prefixes",
        "Identical listings",
    ):
        assert f"<h2>{section}</h2>" in text
    assert text.count("<svg") == 5


def test_the_report_holds_every_figure_of_the_page(tmp_path):
    experiment = world(tmp_path, collision="extra_level", codebook_sizes=[4, 3])
    embed_by_hand(experiment)
    build_sids.main(experiment)
    report = json.loads((stage_path(experiment, "sids") / "report.json").read_text())
    text, _ = parsed(stage_path(experiment, "sids") / "report.html")
    assert report["verdict"]["line"] in text
    assert report["collisions"]["after"] == {
        "collision_rate": 0.0,
        "collision_rate_by_interactions": 0.0,
        "distinct_sids": 40,
        "largest_group": 1,
    }
    assert (
        len(report["curves"]["usage"]) == len(report["levels"]) == 3
    )  # the further level has usage but no error of its own
    assert (
        f"{report['levels'][0]['perplexity']:.1f}" in text
        and f"{report['reconstruction_error'][1]:.3f}" in text
    )


# --------------------------------------------------------------------------------------------------
# Curves and charts


def test_a_use_curve_is_relative_to_an_even_share_and_leaves_dead_codes_out():
    assert usage_curve(np.array([2, 2, 2, 0]), 4) == [[0.0, 3.0], [0.3333, 1.0]]
    even = usage_curve(np.repeat(np.arange(500), 3), 500)
    assert (
        len(even) == 60
        and {y for _, y in even} == {1.0}
        and (even[0][0], even[-1][0]) == (0.0, 1.0)
    )


def test_a_crowd_curve_counts_items_not_prefixes():
    first, second = crowd_curves(np.array([[0, 0], [0, 1], [0, 2], [5, 0]]))
    assert first == [[1, 1.0], [3, 0.75]] and second == [[1, 1.0]]


@pytest.mark.parametrize("least, step", [(1.0, 1), (1.01, 2), (3, 5), (7, 10), (0.0004, 0.0005)])
def test_ticks_are_round(least, step):
    assert nice_step(least) == pytest.approx(step)


def test_a_chart_stays_inside_its_frame_and_is_left_out_without_data():
    assert chart("empty", [Line("a", [], [])], "x", "y") == ""
    for log_x, log_y in ((False, False), (True, True)):
        picture = chart(
            "t",
            [Line("<a>", [1, 10, 300], [0.5, 900, 2]), Line("b", [5], [5], 3, dashed=True)],
            "x",
            "y",
            log_x,
            log_y,
        )
        path = re.search(r'class="line c0" d="M([^"]+)"', picture)[1]
        places = [tuple(map(float, place.split())) for place in path.split("L")]
        assert (
            all(46 <= x <= 350 and 12 <= y <= 190 for x, y in places)
            and places[1][1] < places[2][1] < places[0][1]
        )
        assert "&lt;a&gt;" in picture and "<a>" not in picture and 'class="c3 dashed"' in picture
    assert "nan" not in chart("flat", [Line("a", [1, 2], [0, 0])], "x", "y", points=True)


# --------------------------------------------------------------------------------------------------
# Verdict


def figures(**changes) -> dict:
    """A report that is good in every respect, with changes at ``levels_0_perplexity`` and the like."""
    level = {"size": 100, "used": 100, "dead": 0, "perplexity": 95.0}
    report = {
        "items": 1000,
        "collision": "nearest_free",
        "levels": [dict(level), dict(level)],
        "reconstruction_error": [0.5, 0.3],
        "collisions": {
            "after": {"collision_rate": 0.0, "collision_rate_by_interactions": 0.0},
            "items_with_another_sid_than_quantised": 50,
        },
        "prefixes": [
            {
                "next_item_pairs": 500,
                "category_purity": 0.5,
                "category_purity_control": 0.1,
            }
        ],
        "next_code": {"bits": 0.5, "control": 0.1, "chance": 0.01},
        "duplicate_listings": {"items": 4},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = report
        for name in parents:
            target = target[int(name) if name.isdigit() else name]
        target[int(last) if last.isdigit() else last] = value
    return report


@pytest.mark.parametrize(
    "changes, go, line",
    [
        ({}, True, "Go: every check is good"),
        ({"levels__0__perplexity": 84.0}, True, "Go, but look at: perplexity of level 1"),
        ({"levels__0__perplexity": 16.0}, False, "No-go: perplexity of level 1"),
        ({"levels__1__perplexity": 4.0}, True, "Go, but look at: perplexity of the deeper levels"),
        ({"levels__0__dead": 52}, False, "No-go: dead codes"),
        ({"collisions__after__collision_rate": 0.001}, False, "No-go: items that share a SID"),
        (
            {"collisions__after__collision_rate": 0.001, "collision": "keep"},
            True,
            "Go, but look at: items that share a SID",
        ),
        (
            {
                "collisions__after__collision_rate": 0.001,
                "collisions__after__collision_rate_by_interactions": 0.02,
                "collision": "keep",
            },
            False,
            "No-go: items that share a SID",
        ),
        (
            {"collisions__items_with_another_sid_than_quantised": 501},
            False,
            "No-go: items with a re-assigned code",
        ),
        ({"reconstruction_error__1": 0.499}, True, "Go, but look at: reconstruction error"),
        (
            {"next_code__bits": 0.14},
            False,
            "No-go: what the first code says of the next item",
        ),
        (
            {
                "prefixes__0__next_item_pairs": 0,
                "next_code": None,
                "prefixes__0__category_purity": None,
            },
            True,
            "Go: every check is good",
        ),
        ({"prefixes__0__category_purity": 0.12}, False, "No-go: category purity of the first code"),
        ({"duplicate_listings__items": 11}, True, "Go, but look at: identical listings"),
        (
            {"next_code__bits": 0.2},
            True,
            "Go, but look at: what the first code says of the next item",
        ),
        (
            {"next_code__bits": 0.14, "prefixes__0__next_item_pairs": 199},
            True,
            "Go: every check is good",
        ),
        # chance alone is as large as what dealt SIDs tell: too few pairs for so many codes
        ({"next_code__bits": 0.14, "next_code__chance": 0.06}, True, "Go: every check is good"),
        (
            {"levels__0__perplexity": 16.0, "levels__0__dead": 52, "duplicate_listings__items": 11},
            False,
            "No-go: perplexity of level 1, dead codes",
        ),
    ],
)
def test_the_verdict_names_what_fails_and_gives_advice_for_it(changes, go, line):
    judged = verdict(figures(**changes))
    assert (judged["go"], judged["line"]) == (go, line)
    assert all(bool(check["advice"]) == (check["state"] != "good") for check in judged["checks"])
    assert all(check["wanted"] for check in judged["checks"])


# --------------------------------------------------------------------------------------------------
# Comparison


def compared(experiment, monkeypatch, capsys, methods: str = METHODS) -> str:
    """Run the script in-process; returns what it printed."""
    folder = Path(experiment.output_dir).parent
    sids = experiment.sids
    (folder / "demo.yaml").write_text(
        f"seed: 0\nsids: {{codebook_sizes: {sids.codebook_sizes}, kmeans_iterations: 10}}\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--config", "demo.yaml", "--methods", methods])
    monkeypatch.setattr(embed_items, "main", lambda _: None)  # embedded by hand
    capsys.readouterr()
    compare.main()
    return capsys.readouterr().out


def test_methods_are_compared_on_one_page_and_built_once(tmp_path, monkeypatch, capsys):
    experiment = world(tmp_path)
    embed_by_hand(experiment)
    out = compared(experiment, monkeypatch, capsys)
    folder = stage_path(experiment, "compare")
    text, links = parsed(folder / "compare.html")
    assert (
        links.fetched == [] and links.scripts == 0 and links.open == [] and text.count("<svg") == 6
    )
    figures = json.loads((folder / "compare.json").read_text())
    assert list(figures) == METHODS.split(",") and figures["random"]["go"] is False
    for method in METHODS.split(","):
        assert (
            folder / method / "report.html"
        ).is_file() and f'href="{method}/report.html"' in text
        report = json.loads((folder / method / "report.json").read_text())
        assert (
            figures[method]["perplexity"][0] == report["levels"][0]["perplexity"] and method in out
        )
    again = compared(experiment, monkeypatch, capsys, METHODS + ",rqvae")
    assert (
        again.count("is there already") == 3
        and list(json.loads((folder / "compare.json").read_text()))[-1] == "rqvae"
    )
    made = json.loads((folder / "rqkmeans" / "MANIFEST.json").read_text())
    assert made["settings"] == settings_of(experiment, "sids")
    build_sids.main(experiment)  # to go on with a method gives the same SIDs
    assert (stage_path(experiment, "sids") / "sids.json").read_bytes() == (
        folder / "rqkmeans" / "sids.json"
    ).read_bytes()


def test_what_is_below_its_control_is_never_the_best_of_a_row():
    """Two methods below chance: the better of them would be bold for being least bad."""
    name = "category purity, 1"
    found = [{name: 0.1, f"{name}, random": 0.3}, {name: 0.2, f"{name}, random": 0.3}]
    row = compare.gain_row(name, found)
    assert compare.best_cells(row, ["rqvae", "rqkmeans"]) == []
    found[1][name] = 0.4
    assert compare.best_cells(compare.gain_row(name, [*found, found[0]]), ["a", "b", "c"]) == []
    found.append({name: 0.5, f"{name}, random": 0.3})
    assert compare.best_cells(compare.gain_row(name, found), ["a", "b", "c"]) == [2]


@pytest.mark.parametrize(
    "methods, message",
    [
        ("", "--methods is missing; give methods with commas, out of rqvae, "),
        ("rqkmeans,rqkmean", "--methods: got 'rqkmean', expected some of rqvae, "),
        ("random,random", "--methods: 'random' is given twice; keep one"),
        ("rqkmeans,given", "sids.method: given needs data.source minionerec, got embedded"),
    ],
)
def test_a_wrong_list_of_methods_is_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, methods, message
):
    experiment = world(tmp_path)
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        compared(experiment, monkeypatch, capsys, methods)
    assert (
        len(str(caught.value).splitlines()) == 1 and not stage_path(experiment, "compare").exists()
    )


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_pages_fit_a_screen_and_a_phone(tmp_path, monkeypatch, capsys, width):
    """A page that is wider than the window would scroll sideways as a whole; only tables may,
    inside their own box.
    """
    experiment = world(tmp_path)
    embed_by_hand(experiment)
    compared(experiment, monkeypatch, capsys)
    folder = stage_path(experiment, "compare")
    for page in (folder / "compare.html", folder / "rqkmeans" / "report.html"):
        picture = tmp_path / f"{page.stem}-{width}.png"
        browse(page, tmp_path, width, f"--screenshot={picture}")
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 20_000
        needed, there = widths(page, tmp_path, width)
        assert needed <= there
