"""Fixtures of the governance tests."""

import pytest
from tests.lab.runs import Lab


@pytest.fixture
def make_lab(tmp_path):
    """Make a run with the given settings above the defaults."""
    return lambda overrides=None: Lab(tmp_path, overrides or {})
