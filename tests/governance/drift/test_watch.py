"""A watch: no alarm without drift, an alarm with it, its first day, its drivers, its state."""

import random

import pytest

from tuneline.governance.drift.prompts import Prompt
from tuneline.governance.drift.reference import Reference
from tuneline.governance.drift.watch import WatchState, compare

VERBS = "track cancel return refund find change delay lose damage send open pay".split()
THINGS = "parcel order invoice card address account voucher box label receipt".split()
TIMES = "today yesterday on monday last week this morning since friday at noon".split()
OTHER = "boil roast quantum galaxy violin mountain tiger sonata glacier orchid lava comet".split()


def usual(rng):
    return (
        f"can you {rng.choice(VERBS)} my {rng.choice(THINGS)} and the {rng.choice(THINGS)} "
        f"{rng.choice(TIMES)} because i {rng.choice(VERBS)} it?"
    )


def foreign(rng):
    return "how do i " + " ".join(rng.choice(OTHER) for _ in range(8))


def prompts(rng, count, make=usual, first=1, **fields):
    return [Prompt(first + n, make(rng), **fields) for n in range(count)]


@pytest.fixture(scope="module")
def reference():
    rng = random.Random(0)
    train = [Prompt(n, usual(rng), rng.choice("abcd")) for n in range(1200)]
    return Reference.fit(train, prompts(rng, 200))


def days(rng, count, size=100, **fields):
    return {f"2026-01-{d:02d}": prompts(rng, size, **fields) for d in range(1, count + 1)}


def test_four_weeks_without_drift_are_quiet(reference):
    for seed in range(2):
        assert not compare(reference, days(random.Random(seed), 28)).drifted


def test_longer_prompts_of_the_same_words_are_drift(reference):
    rng = random.Random(2)
    window = [Prompt(n, f"{usual(rng)} {usual(rng)}") for n in range(80)]
    found = {m.name: m for m in compare(reference, {"": window}).measures}
    assert found["length_psi"].drifted


def test_one_question_over_and_over_is_seen_by_the_mmd(reference):
    rng = random.Random(3)
    again = usual(rng)
    window = prompts(rng, 200) + [Prompt(n, again) for n in range(80)]
    rng.shuffle(window)
    found = {m.name: m for m in compare(reference, {"": window}).measures}
    assert found["mmd2"].drifted
    assert not found["novelty_share"].drifted


def test_a_label_that_rises_is_called_and_named(reference):
    rng = random.Random(5)
    window = [Prompt(n, usual(rng), "a" if n % 2 else rng.choice("abcd")) for n in range(300)]
    report = compare(reference, {"2026-01-01": window})
    assert [m.name for m in report.measures if m.drifted] == ["label_mix"]
    assert {d.why for d in report.drivers["label_mix"]} == {"label a"}


@pytest.mark.parametrize(
    ("name", "event", "normal"),
    [
        ("low_confidence_rate", {"logprob": -3.0}, {"logprob": -0.2}),
        ("fallback_rate", {"fallback": True}, {"fallback": False}),
        ("rejection_rates", {"rejected": "cut_off"}, {"rejected": None}),
    ],
)
def test_answers_that_get_worse_are_called_after_the_first_nights(reference, name, event, normal):
    asked = [usual(random.Random(n)) for n in range(500)]

    def night(bad):
        return [Prompt(n, asked[n], **(event if n < bad else normal)) for n in range(500)]

    log = {f"2026-02-{d:02d}": night(5) for d in range(1, 7)}
    calm = compare(reference, log)
    assert not calm.drifted
    report = compare(reference, {"2026-02-07": night(60)}, calm.state)
    assert report.since == "2026-02-07"
    assert [m.name for m in report.measures if m.drifted] == [name]


@pytest.mark.parametrize(("without", "called"), [(30, False), (370, True)])
def test_requests_without_text_are_counted_and_called_if_they_are_many(reference, without, called):
    window = prompts(random.Random(6), 400 - without) + [Prompt(n, None) for n in range(without)]
    report = compare(reference, {"": window})
    assert (report.prompts, report.without_text) == (400, without)
    assert [m.name for m in report.measures if m.drifted] == ["rejection_rates"] * called
    if called:
        assert {d.why for d in report.drivers["rejection_rates"]} == {"rejected: no_text"}


def test_night_by_night_through_json_is_the_same_as_at_once(reference):
    rng = random.Random(7)
    log = days(rng, 9)
    log["2026-01-09"] = prompts(rng, 60) + prompts(rng, 40, foreign)
    at_once = compare(reference, log)
    state = WatchState()
    for day, rows in log.items():
        report = compare(reference, {day: rows}, state)
        state = WatchState.model_validate_json(report.state.model_dump_json(by_alias=True))
    assert report.drifted
    assert report.since == at_once.since == "2026-01-09"
    for one, other in zip(report.measures, at_once.measures, strict=True):
        assert one.p_value == pytest.approx(other.p_value, rel=1e-3)
