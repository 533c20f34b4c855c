"""The pages: nothing they name is missing, and what they quote is what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from minionerec.experiment.config import read_experiment
from minionerec.experiment.stages import STAGES
from tests import style

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Diaries: what they name was there on the day.
LASTING = [name for name in NAMES if name not in ("docs/LOG.md", "CHANGELOG.md")]
FOLDERS = "tests|minionerec|rqvae|data|baselines|benchmarks|configs|docs"
FILE = (
    rf"(?<![\w./>-])((?:(?:{FOLDERS})/)?[\w./-]*\w\.(?:py|sh|md|toml|cff)|(?:{FOLDERS})/[\w./-]*)"
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def code_in(text: str) -> list[str]:
    """What stands between backticks, and the lines of code blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    without = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", without) + "".join(blocks).splitlines()


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        page = (ROOT / name).parent / file if file else ROOT / name
        assert page.exists(), target
        assert not anchor or anchor in heading_anchors(page), target


@pytest.mark.parametrize("name", LASTING)
def test_every_file_that_a_page_names_exists(name):
    missing = []
    for code in code_in(text_of(name)):
        for path in re.findall(FILE, code.replace("/X.yaml", "/cpu.yaml")):
            if "NAME" not in path and not (ROOT / path).exists():
                missing.append(f"{path} in `{code}`")
    assert missing == []


@pytest.mark.parametrize("name", LASTING)
def test_every_definition_and_test_that_a_page_names_exists(name):
    missing = []
    for path, definition in re.findall(r"`([\w/]+\.py)::?((?:\w+\.)*\w+)", text_of(name)):
        for part in definition.split("."):
            pattern = rf"^ *(async )?(def|class) {part}\b|^{part}\b"
            if not re.search(pattern, text_of(path), re.MULTILINE):
                missing.append(f"{path}:{definition}")
    assert missing == []


@pytest.mark.parametrize("name", LASTING)
def test_every_setting_that_a_page_names_exists(name):
    experiment = read_experiment(ROOT / "configs/quickstart.yaml")
    sections = "data|sids|model|sft|rl|evaluate|baselines"
    for code in code_in(text_of(name)):
        for section, key in re.findall(rf"(?:^|--|\s)({sections})\.([a-z_]+)(?=[ :`]|$)", code):
            if key not in ("sh", "py"):
                assert hasattr(getattr(experiment, section), key), f"{section}.{key} in {code}"


def test_the_settings_that_the_pages_show_are_valid(tmp_path):
    """Every block of YAML is a section, or several, of an experiment file."""
    found = 0
    for name in LASTING:
        for number, block in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE)
        ):
            path = tmp_path / f"{number}.yaml"
            path.write_text(f"name: shown\n{block}")
            read_experiment(path)
            found += 1
    assert found >= 1


def test_the_readme_is_short_and_its_picture_small():
    text = text_of("README.md")
    assert len(text.splitlines()) < 150
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 200_000


def test_the_table_of_the_readme_holds_the_figures_of_the_results_page():
    shown = re.findall(
        r"^(\w+) +((?:0\.\d{4} +){6})(0\.\d+)-(0\.\d+)$", text_of("README.md"), re.MULTILINE
    )
    assert len(shown) == 8
    results = text_of("docs/RESULTS.md")
    for _, figures, low, high in shown:
        cells = [figure.removeprefix("0") for figure in figures.split()]
        row = " | ".join([*cells, f"{low.removeprefix('0')}-{high.removeprefix('0')}"])
        assert row in results


def test_the_readme_shows_the_table_of_stages():
    rows = []
    for stage in STAGES.values():
        if not stage.part_of:
            row = f"| `{stage.name}` | {stage.what} | `{stage.command}` | `{stage.next}` |"
            rows.append(row)
    assert "\n".join(rows) in text_of("README.md")


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    newest = re.search(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)
    assert newest and newest[1] == version
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version


def test_every_room_is_on_the_page_about_files():
    rooms = {path.parent.name for path in style.product_files() if "minionerec" in path.parts}
    line = next(line for line in text_of("README.md").splitlines() if "`minionerec/`" in line)
    for room in rooms - {"minionerec", "sources", "settings"}:
        assert room in line, room


def source_files() -> list[Path]:
    """Every Python and shell file, tests too."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    return [*style.product_files(), *tests, *ROOT.glob("*.sh"), *ROOT.glob("*/*.sh")]


def test_every_file_that_a_docstring_or_comment_names_exists():
    """Also the command at the head of a test that runs it."""
    missing = []
    for path in source_files():
        head = re.findall(r'^""".*?"""|^# .*$', path.read_text(), re.DOTALL | re.MULTILINE)
        for named in re.findall(rf"\b((?:{FOLDERS})/[\w./-]+\.(?:py|sh|md|yaml))", "\n".join(head)):
            if not (ROOT / named).exists():
                missing.append(f"{path.relative_to(ROOT)}: {named}")
    assert missing == []
