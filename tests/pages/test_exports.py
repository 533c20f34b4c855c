"""Pictures and tables of a page as files for a talk.

python -m pytest tests/pages/test_exports.py
"""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree

from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from minionerec import summary
from minionerec.pages.exports import latex_row, tables
from minionerec.pages.vector import draw, pictures, write_pdf
from tests.pages.test_experiment_page import finished

DRAWING = """<figure><figcaption>A<small>b</small></figcaption><svg viewBox="0 0 100 50">
<path class="grid" d="M10 20H90"/><path class="line c1 dashed" d="M10 20L30 40.5V5"/>
<text x="5" y="7" text-anchor="end"><title>a long name</title>a long…</text>
<g fill="#123456"><circle cx="3" cy="4" r="2"/></g></svg>
<ul class="legend"><li class="c1"><bdi>R &amp; L</bdi></li></ul></figure>"""


def test_a_drawing_carries_its_colours_and_its_legend_and_its_pdf_is_always_the_same(tmp_path):
    drawing = pictures(DRAWING)["01-a"]
    grid, line, name, group, dot, label = list(drawing)
    assert drawing.get("viewBox") == "0 0 100 68"  # room for one row of the legend
    assert (grid.get("stroke"), line.get("stroke")) == ("#d9dee3", "#d9742b")
    assert line.get("stroke-dasharray") == "5 4" and grid.get("stroke-dasharray") is None
    assert dot.get("fill") == "#d9742b" and label.text == "R & L"
    assert group.get("fill") == "#123456" and group[0].get("fill") is None
    assert (name.get("fill"), name.get("class")) == ("#5c6670", None)
    write_pdf(drawing, tmp_path / "a.pdf")
    write_pdf(drawing, tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_line_goes_where_its_steps_say_and_a_tooltip_is_not_written(tmp_path):
    axes = Figure().add_axes((0, 0, 1, 1))
    draw(axes, pictures(DRAWING)["01-a"], "")
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[10, 20], [90, 20]],
        [[10, 20], [30, 40.5], [30, 5]],
    ]
    assert [text.get_text() for text in axes.texts] == ["a long…", "R & L"]
    assert [to_hex(patch.get_facecolor()) for patch in axes.patches] == ["#123456", "#d9742b"]


def test_cells_lose_their_marks_and_latex_its_traps():
    page = '<table id="t"><thead><tr><th>a</th></tr></thead><tr><td class="x"><b>5 &lt; 6</b></td></tr>'
    assert tables(page + "</table><table><tr><td>nameless</td></tr></table>") == {
        "t": [["a"], ["5 < 6"]]
    }
    assert latex_row(["a\\\\b_c", "{x}", "50 %", "~^"]) == (
        r"a\textbackslash{}\textbackslash{}b\_c & \{x\} & 50 \% & \textasciitilde{}\textasciicircum{} \\"
    )


def test_the_pages_pictures_and_tables_lie_beside_it(tmp_path):
    experiment = finished(tmp_path)
    folder = tmp_path / "tiny" / "figures"
    folder.mkdir()
    (folder / "old.svg").write_text("of an earlier page")
    summary.main(experiment)
    pictures = sorted(folder.glob("*.svg"))
    page = (tmp_path / "tiny" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"thing \d of kind \d  ‹\d·\d›", page)  # SIDs beside the examples' titles
    assert len(pictures) == page.count("<figure>") > 4
    for drawn in sorted(folder.glob("*.pdf")):
        assert (
            drawn.read_bytes().startswith(b"%PDF-") and b"/Subtype /Type3" not in drawn.read_bytes()
        )
    assert [file.stem for file in sorted(folder.glob("*.pdf"))] == [file.stem for file in pictures]
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()  # noqa: S314 (our own file)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for shape in root.iter():  # most programs know neither classes nor variables
            assert "class" not in shape.attrib and "var(" not in str(shape.attrib)
            if shape.tag.endswith(("circle", "path", "text")):
                assert {"fill", "stroke"} & set(shape.attrib)
    sliced = next(file for file in pictures if "history" in file.name)
    assert ">SFT</text>" in sliced.read_text(encoding="utf-8")  # the legend came along
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    markov = {row["metric"]: row for row in rows if row["method"] == "markov"}
    assert float(markov["NDCG@10"]["value"]) == 0.5  # every target third: 1 / log2(4)
    assert float(markov["NDCG@10"]["low"]) <= 0.5 <= float(markov["NDCG@10"]["high"])
    table = (folder / "results.tex").read_text(encoding="utf-8")
    assert table.startswith("\\begin{tabular}{lr") and "markov & " in table
    assert "0.5000" in table
    assert (folder / "cost.csv").is_file() and (folder / "splits.tex").is_file()
    assert "sft.learning_rate,0.01" in (folder / "settings-sft.csv").read_text(encoding="utf-8")
    assert (folder / "differences.csv").read_text(encoding="utf-8").count("SFT against markov") == 2
    over_k = next(file for file in pictures if "hr@k-over-k" in file.name).read_text()
    # Lists are 13 long: K = 1, 3, 5, 10 of Markov, SFT and RL, and three circles of the legend
    assert over_k.count("<circle") == 4 * 3 + 3 and "first 20" not in over_k
