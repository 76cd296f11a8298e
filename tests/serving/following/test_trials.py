"""Canaries over a restart of their follower or their gateway, and who says how they are tried."""

import json
import random
import time
from dataclasses import asdict

import pytest
from tests.lab.canaries import ASKED, release
from tests.serving.following.test_canary_judge import RATES, answer, plus

from tuneline.artifacts.release_log import read_log
from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.governance.release.canary import CanaryLog
from tuneline.serving.following.canaries import Canaries, CanaryOptions, CanaryRule
from tuneline.serving.gateway.chain.canary import ArmCounts
from tuneline.store import open_store

NONE = ReleaseCanaryConfig()


class House:
    """A model whose second version is tried by a follower that can be replaced."""

    def __init__(self, folder):
        self.folder = folder
        self.store = open_store((folder / "store").as_uri())
        self.said = []
        for version in "12":
            release(self.store, "a", version)
        self.arms = ArmCounts(), ArmCounts()
        self.draw = random.Random(3)
        self.follow()

    def follow(self, share=0.1, hours=24.0, asked=NONE):
        options = CanaryOptions(share, hours, CanaryLog(self.store), look_seconds=0.0)
        self.canaries = Canaries(options, self.folder, self.said.append)
        if self.canaries.wants("a", "2", asked):
            self.canaries.begin("a")

    def serve(self, requests, rates=RATES):
        for _ in range(requests):
            arms = ArmCounts(), ArmCounts()
            answer(self.draw, arms[0], rates, 1.0)
            answer(self.draw, arms[1], RATES, 1.0)
            self.arms = tuple(plus(*pair) for pair in zip(self.arms, arms, strict=True))

    def look(self, began=1.0):
        candidate, released = map(asdict, self.arms)
        self.canaries.look("a", {"began": began, "candidate": candidate, "released": released})
        return self.canaries.reason("a", "2")

    @property
    def outcomes(self):
        lines = read_log(self.store, "a", "2").lines()
        return [getattr(line.event, "outcome", line.event.event) for line in lines]

    @property
    def kept(self):
        return json.loads((self.folder / "canaries.json").read_text())


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def whole(arms):
    """What one rule says who sees the same looks without an interruption."""
    rule = CanaryRule()
    for pair in arms:
        ruling = rule.look(*pair)
    return ruling


def test_a_new_follower_goes_on_with_all_that_was_seen(house):
    seen = []
    for _ in range(3):
        house.serve(20)
        seen.append(house.arms)
        house.look()
        before = house.canaries.reason("a", "2")
        began = house.kept["a"]["began"]
        house.follow()
        # Nothing is lost, nothing counts twice, and its hours go on.
        assert house.canaries.reason("a", "2") == before
        assert house.look() == before
        assert house.kept["a"]["began"] == began
    assert house.canaries.reason("a", "2").endswith(whole(seen).reason)
    assert "60 answers do not decide" in before
    assert house.said[-1] == f"a@2 is tried on 10% of the keys again: {whole(seen).reason}"
    assert house.outcomes == ["released", "started"]


def test_it_is_promoted_by_what_both_followers_saw(house):
    house.serve(400)
    house.look()
    house.follow()
    while "promoted" not in house.outcomes:
        house.serve(200)
        house.look()
        assert house.arms[0].requests < 5000
    assert house.kept == {}
    # The next follower has nothing to try.
    house.follow()
    assert house.canaries.reason("a", "2") is None


def test_a_gateway_that_counts_anew_adds_to_what_was_seen(house):
    house.serve(30)
    house.look()
    house.follow()
    # More requests than before, so that the numbers alone would not show it.
    house.arms = ArmCounts(), ArmCounts()
    house.serve(40)
    assert "70 answers do not decide" in house.look(began=2.0)


def test_a_worse_one_is_withdrawn_after_a_restart(house):
    looks = 0
    while "withdrawn" not in house.outcomes:
        house.serve(80, {**RATES, "errors": 0.3})
        house.look()
        house.follow()
        looks += 1
        assert looks < 12
    # A single burst of errors does not do it.
    assert looks >= 6
    assert house.outcomes[-2:] == ["withdrawn", "withdrawn"]
    assert house.kept == {}


def test_its_hours_go_on_while_no_follower_runs(house):
    house.serve(5)
    house.look()
    left = house.kept
    left["a"]["began"] = time.time() - 25 * 3600
    (house.folder / "canaries.json").write_text(json.dumps(left))
    house.follow()
    house.look()
    lines = read_log(house.store, "a", "2").lines()
    assert lines[-1].event.reason.startswith("undecided after 24 hours: 5 answers")


@pytest.mark.parametrize("damage", ["", "{}x", "shares", "buckets"])
def test_a_state_that_does_not_fit_begins_again(house, damage):
    house.serve(30)
    house.look()
    left = house.kept
    if damage == "shares":
        del left["a"]["known"]["shares"]["errors"]
    if damage == "buckets":
        left["a"]["known"]["candidate"]["seconds"].pop()
    text = json.dumps(left) if damage.isalpha() else damage
    (house.folder / "canaries.json").write_text(text)
    house.follow()
    assert any("begin again" in line or "begins again" in line for line in house.said)
    assert "30 answers do not decide" in house.look()


def test_the_release_goes_before_the_flags_of_the_follower(tmp_path):
    asked = ReleaseCanaryConfig.model_validate(ASKED["governance"]["canary"])
    options = CanaryOptions(0.3, 2.0, None, 30.0)
    assert options.terms(asked) == (0.1, 6.0)
    assert options.terms(NONE) == (0.3, 2.0)
    assert CanaryOptions(0.0, 24.0, None, 30.0).terms(NONE)[0] == 0.0


def test_without_flags_only_a_release_that_asks_for_it_is_tried(house):
    house.follow(share=0.0)
    assert house.canaries.reason("a", "2") is None
    house.follow(share=0.0, asked=ReleaseCanaryConfig(share=0.25))
    assert house.canaries.share("a") == 0.25
