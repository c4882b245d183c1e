"""Fixtures: real data where it is at hand, and an encoder so small that a whole stage takes a second."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def real_folder(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"needs {what}: set {variable} to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return real_folder("PURE_DATA_DIR", "the real data sets")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return real_folder("PURE_GOLDEN_DIR", "the published functions' numbers")
