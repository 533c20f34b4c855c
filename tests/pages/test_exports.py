"""Pictures and tables of a page as files for a talk.

python -m pytest tests/pages/test_exports.py
"""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree

from minionerec import summary
from tests.pages.test_experiment_page import finished


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
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()  # noqa: S314 (our own file)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme" not in picture.read_text(encoding="utf-8")
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
    assert (folder / "differences.csv").read_text(encoding="utf-8").count("SFT against markov") == 2
    over_k = next(file for file in pictures if "hr@k-over-k" in file.name).read_text()
    # Lists are 13 long: K = 1, 3, 5, 10 of Markov, SFT and RL, and three circles of the legend
    assert over_k.count("<circle") == 4 * 3 + 3 and "first 20" not in over_k
