"""A tiny base model for the tests of this folder; they must not change it."""

import pytest
from tests.lab.tiny_models import make_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "model"
    make_model(directory)
    return directory
