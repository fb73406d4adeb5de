"""Settings shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: it counts the machine's cores, not those this process may use.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

# No deadline: the first call of anything in torch is slow. A failure on CI must repeat at home.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

DATA_VARIABLE = "MAMBAADV2_DATA"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images in the MVTec AD layout, or skip."""
    named = os.environ.get(DATA_VARIABLE)
    folder = Path(named) if named else BESIDE
    if named and not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE}: expected a folder, {folder} is none")
    if not folder.is_dir():
        pytest.skip(f"no real images: {DATA_VARIABLE} names no folder in the MVTec AD layout")
    return folder
