"""The cost of a month's automatic trainings, as each of them measured it."""

from datetime import date

import pytest
from tests.lab.runs import Lab

from tuneline.data.sources.find_files import DatasetVersion
from tuneline.evidence import measure
from tuneline.governance.retraining.drift import Look, note_retraining
from tuneline.governance.retraining.nightly import note_tried
from tuneline.governance.retraining.spending import over_budget, spent
from tuneline.run import now

NAME = "support-intents"


def trained(tmp_path, run_id, cost):
    """A run whose training measured its cost."""
    lab = Lab(tmp_path, {}, run_id=run_id)
    lab.leave("train", {}, [measure("cost", cost, "USD")])
    return lab.run.store


@pytest.fixture
def store(tmp_path):
    return Lab(tmp_path, {}, run_id="by-hand").run.store


def test_nights_and_drifts_of_the_month_are_summed(store, tmp_path):
    today = date.fromisoformat(now()[:10])
    trained(tmp_path, "night-1", 2.5)
    trained(tmp_path, "night-2", 1.0)
    trained(tmp_path, "drift-1", 4.0)
    for number in (1, 2):
        version = DatasetVersion(files={"a": str(number)})
        note_tried(store, NAME, version, "s", f"night-{number}")
    note_retraining(store, NAME, Look(True, today, today, "x", "uri"), "drift-1")
    # A drift's data count as tried, but its run once.
    note_tried(store, NAME, DatasetVersion(files={"a": "drift"}), "s", "drift-1")
    assert spent(store, NAME, today) == pytest.approx(7.5)
    last_year = today.replace(year=today.year - 1, day=1)
    assert spent(store, NAME, last_year) == 0


def test_a_run_that_is_still_training_or_gone_counts_nothing(store):
    for number, run in enumerate(("by-hand", "cleaned-up")):
        note_tried(store, NAME, DatasetVersion(files={"a": f"{number}"}), "s", run)
    assert spent(store, NAME, date.fromisoformat(now()[:10])) == 0


def test_the_budget_is_spent_when_the_cost_reaches_it(store, tmp_path):
    today = date.fromisoformat(now()[:10])
    trained(tmp_path, "night-1", 5.0)
    note_tried(store, NAME, DatasetVersion(files={"a": "1"}), "s", "night-1")
    assert over_budget(store, NAME, today, None) is None
    assert over_budget(store, NAME, today, 5.5) is None
    said = over_budget(store, NAME, today, 5.0)
    assert said is not None
    assert "trainings cost 5, budget.training_per_month is 5" in said
