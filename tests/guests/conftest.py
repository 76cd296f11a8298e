"""Fixtures of the guests: base models of families, and guests through the data phase."""

import dataclasses

import pytest
import yaml
from benchmarks.faults.guests.__main__ import settings_of
from benchmarks.faults.guests.families import FAMILIES, write_base
from benchmarks.faults.guests.outcome import read_outcome
from benchmarks.faults.guests.shapes import guest
from tests.lab.wheels import link_usual_wheel

from tuneline.data.prepare import prepare


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Hashes of the models of these tests stay out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    link_usual_wheel(cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Returns the directory of a family's base model, without weights, made once."""
    root = tmp_path_factory.mktemp("bases")

    def base(family):
        folder = root / family
        return folder if folder.exists() else write_base(FAMILIES[family], folder, weights=False)

    return base


@pytest.fixture
def welcome(bases, tmp_path, monkeypatch):
    """Takes a guest through `data prepare`; returns it, and what became of its rows."""
    # What leaks of the usual number of canaries is the subject of other tests.
    monkeypatch.setattr("tuneline.data.pii.measure.leak_estimate.MOST_CANARIES", 20)

    def run(name, family="qwen2_5", seed=1, rows=None, **data):
        trial = guest(name, seed, rows, FAMILIES[family].end)
        trial = dataclasses.replace(trial, settings={**trial.settings, "pii_canaries": 20, **data})
        config = tmp_path / "settings.yaml"
        config.write_text(yaml.safe_dump(settings_of(trial)))
        source = trial.write(tmp_path / "rows.jsonl")
        prepare(str(source), str(bases(family)), tmp_path / "out", config)
        return trial, read_outcome(trial, tmp_path / "out")

    return run
