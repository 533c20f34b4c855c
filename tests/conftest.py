"""What every test gets: one thread (bit-exact results, and the test runner decides about parallelism), no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile(
    "busy machine", deadline=None
)  # other workers may hold the cores at any moment
settings.load_profile("busy machine")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


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
