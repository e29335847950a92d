"""What several tests of tasks need."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def math_verify() -> None:
    """Skip if the comparison of mathematical answers is not installed."""
    pytest.importorskip("math_verify", reason="math-verify is not installed")
