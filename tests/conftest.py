"""What the whole suite shares: paths of the data, and a hush over the compilation of kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    """Draw figures without a screen; in the environment, so that subprocesses of tests do the same."""
    os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the data sets that tests read."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def source_folder() -> Path:
    """The folder of the package under test."""
    import partialpool.errors

    return Path(partialpool.errors.__file__).resolve().parent
