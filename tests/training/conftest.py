"""Fixtures of the training tests: the tiny model is made once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.training_runs import TrainingLab, make_base, make_learned_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny model."""
    from tuneline.training.loop.model import load_torch

    load_torch(1, 0)
    return make_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def learned_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Directory of a tiny model that has learned the task already."""
    return make_learned_base(tmp_path_factory.mktemp("learned"))


@pytest.fixture
def lab(tmp_path: Path, tiny_base: Path) -> Callable[..., TrainingLab]:
    """Make a run on the tiny model; keyword arguments are settings of training."""

    def make(
        name: str = "lab", base: Path = tiny_base, deployment: Any = None, **training: Any
    ) -> TrainingLab:
        overrides: dict[str, Any] = {"training": training}
        if deployment:
            overrides["deployment"] = deployment
        root = tmp_path / name
        root.mkdir()
        return TrainingLab(root, base, overrides)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> TrainingLab:
    """A run whose training is done; its tests only read it."""
    lab = TrainingLab(tmp_path_factory.mktemp("trained"), tiny_base, {"training": {"epochs": 4}})
    lab.train()
    return lab
