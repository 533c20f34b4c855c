"""What every test gets: one thread (bit-exact results; the test runner decides about parallelism), no network.

The marker ``fast`` is set here, by measured durations.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import durations

# Other workers may hold the cores at any moment.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what ``-m fast`` leaves out."""
    if config.option.markexpr == "fast" and collection_path.name in durations.WHOLE_COMMANDS:
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``fast`` what was not measured to take longer than a second."""
    long_ones = durations.measured()
    for item in items:
        if not item.get_closest_marker("slow") and durations.is_fast(item.nodeid, long_ones):
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that ``MINIONEREC_REAL_DATA`` names; tests that need it are skipped when it is not set.

    A path that is set but wrong fails instead: a typing mistake must not look like a passed run.
    """
    named = os.environ.get("MINIONEREC_REAL_DATA")
    if not named:
        pytest.skip("MINIONEREC_REAL_DATA is not set")
    assert Path(named).is_dir(), f"MINIONEREC_REAL_DATA: {named} is not a folder"
    return Path(named)
