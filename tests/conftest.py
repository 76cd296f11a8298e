"""Fixtures that several packages' tests share; heavy imports stay inside them."""

import os

import pytest

# Spinning OpenMP workers cost a factor of ten as soon as anything else runs on the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """A tiny trained base, adapter and merged model with their GGUF files."""
    from tests.lab.tiny_task import TinyModels

    return TinyModels(tmp_path_factory.mktemp("tiny-models"))
