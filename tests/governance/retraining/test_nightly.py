"""A night trains on new data or settings, or on demand, and not on what was judged before."""

import json
from datetime import date

import pytest
from tests.lab.canaries import ASKED, release
from tests.lab.releases import bare_release
from tests.lab.runs import Lab

from tuneline.config import build_config
from tuneline.data.sources.find_files import DatasetVersion, dataset_version
from tuneline.evidence import measure
from tuneline.governance.release.canary import CanaryLog
from tuneline.governance.retraining.drift import Look, note_retraining
from tuneline.governance.retraining.nightly import decide, note_tried, over_budget, spent
from tuneline.launch import create_run
from tuneline.run import Run, now
from tuneline.store import open_store

NAME = "support-intents"


class Nights:
    """A store with a dataset of two files, and runs and releases of one model."""

    def __init__(self, folder):
        self.settings = "those of the first night"
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.write("a.jsonl", "one")
        self.write("b.jsonl", "two")
        self.uri = (folder / "store").as_uri()
        self.store = open_store(self.uri)

    def write(self, name, text):
        row = {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]
        }
        (self.data / name).write_text(json.dumps(row) + "\n")

    @property
    def version(self):
        return dataset_version([str(self.data)])

    def run(self, run_id):
        meta = {"model_settings": self.settings}
        return create_run({"data": str(self.data)}, self.uri, run_id, meta)

    def judge(self, run_id):
        """Leave what was tried on these data and settings, and found not to be better."""
        note_tried(self.store, NAME, self.version, self.settings, run_id)
        gain = measure("gain_lower", 0.0, "share", ">", 0.1)
        Lab(self.folder, {}, run_id=run_id).leave("holdout_performance", {}, [gain])

    def decide(self, **asked):
        return decide(self.store, "support-intents", self.version, self.settings, **asked)


@pytest.fixture
def nights(tmp_path):
    return Nights(tmp_path)


def test_nights_without_new_data_are_skips(nights):
    bare_release(nights.run("first"))
    for _ in range(3):
        night = nights.decide()
        assert not night.train
        assert "no new data since support-intents first" in night.why
    assert nights.decide(force=True).train
    nights.settings = "others"
    assert "the model's settings changed since support-intents first" in nights.decide().why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: n.write("c.jsonl", "three"), "new: c.jsonl"),
        (lambda n: n.write("a.jsonl", "other"), "changed: a.jsonl"),
        (lambda n: (n.data / "b.jsonl").unlink(), "gone: b.jsonl"),
    ],
)
def test_one_night_with_other_data_trains_once(nights, change, said):
    bare_release(nights.run("first"))
    change(nights)
    night = nights.decide()
    assert night.train
    assert said in night.why
    nights.judge("second")
    again = nights.decide()
    assert not again.train
    assert "were tried" in again.why
    assert "by second, which was not released (holdout_performance (fail): gain_lower" in again.why
    # So with other settings, also on the data of the release.
    nights.settings = "others"
    assert nights.decide().train


def test_data_that_were_released_after_a_failure_are_no_longer_tried(nights):
    bare_release(nights.run("first"))
    nights.write("a.jsonl", "other")
    nights.judge("second")
    bare_release(nights.run("third"))
    nights.write("a.jsonl", "other")
    assert "no new data since support-intents third" in nights.decide().why


def test_a_release_that_does_not_say_its_data_is_trained_anew(nights):
    run = Run.create(nights.uri, "old", build_config({"data": {"source": str(nights.data)}}), {})
    bare_release(run)
    night = nights.decide()
    assert night.train
    assert "does not say which data it saw" in night.why


def test_a_spent_budget_trains_nothing_even_on_new_data(nights):
    bare_release(nights.run("first"))
    nights.write("c.jsonl", "three")
    night = nights.decide(over_budget="the budget of March is spent")
    assert not night.train
    assert "the budget of March is spent" in night.why
    assert nights.decide(over_budget="the budget of March is spent", force=True).train


def test_no_night_trains_beside_a_canary_that_is_not_decided(nights):
    model = "support-intents"
    bare_release(nights.run("first"))
    nights.run("second")
    release(nights.store, model, "second", settings=ASKED)
    nights.write("c.jsonl", "three")
    night = nights.decide()
    assert not night.train
    assert night.why == f"not trained: the canary of {model} second is not decided yet"
    assert nights.decide(force=True).train
    # Once it is withdrawn, its data were tried, and the reason is known.
    note_tried(nights.store, model, nights.version, nights.settings, "second")
    CanaryLog(nights.store).withdrawn(model, "second", 0.1, "more errors than the release")
    night = nights.decide()
    assert not night.train
    assert "its canary withdrew it: more errors than the release" in night.why


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
    # One that is still training or gone counts nothing.
    for run in ("by-hand", "cleaned-up"):
        note_tried(store, NAME, DatasetVersion(files={"a": run}), "s", run)
    assert spent(store, NAME, today) == pytest.approx(7.5)
    last_year = today.replace(year=today.year - 1, day=1)
    assert spent(store, NAME, last_year) == 0


def test_the_budget_is_spent_when_the_cost_reaches_it(store, tmp_path):
    today = date.fromisoformat(now()[:10])
    trained(tmp_path, "night-1", 5.0)
    note_tried(store, NAME, DatasetVersion(files={"a": "1"}), "s", "night-1")
    assert over_budget(store, NAME, today, None) is None
    assert over_budget(store, NAME, today, 5.5) is None
    said = over_budget(store, NAME, today, 5.0)
    assert said is not None
    assert "trainings cost 5, budget.training_per_month is 5" in said
