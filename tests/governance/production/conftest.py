"""Stores with logged requests, and their curated days."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.lab.logged import DAY, MODEL, put

from tuneline.artifacts.request_log import LoggedRequest
from tuneline.evidence import Verdict
from tuneline.governance.production.curate import curate
from tuneline.governance.production.curated_days import CuratedDay
from tuneline.governance.production.settings import read_settings
from tuneline.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture(scope="session")
def without_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings without the model of names, which takes seconds to load."""
    path = tmp_path_factory.mktemp("settings") / "patterns.yaml"
    path.write_text("data: {pii_ner: false}\n")
    return path


@pytest.fixture
def ungated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate of a day costs a second, and is tested where days are curated."""
    place = "tuneline.governance.production.curate.validate"
    monkeypatch.setattr(place, lambda suites, root: (Verdict.PASS, [], 1))


@pytest.fixture
def curated(tmp_path: Path, without_names: Path) -> Callable[..., CuratedDay]:
    """Put requests into a store and curate their day by patterns alone."""

    def make(store: Store, rows: list[LoggedRequest], **settings: Any) -> CuratedDay:
        if rows:
            put(store, rows, tmp_path)
        read = read_settings(settings.pop("config", without_names), **settings)
        return curate(store, MODEL, rows[0].day if rows else DAY, read)

    return make
