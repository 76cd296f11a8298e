"""Fixtures of the evaluation items' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.run_lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    """Make a run; keyword arguments are configuration sections."""

    def make(**overrides: Any) -> Lab:
        return Lab(tmp_path, overrides)

    return make
