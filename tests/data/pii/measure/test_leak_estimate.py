"""What leaks is measured in the dataset's own register, and each fault of a detector shows."""

import re
from collections import Counter
from dataclasses import replace

import pytest
from tests.data.pii.measure.test_planting import chat_rows, edited_rows
from tests.lab.data_runs import clean_rows
from tests.lab.detectors import EDITED, EVERYTHING, LONG_NUMBERS, PatternDetector
from tests.lab.runs import value

from tuneline.config import DataConfig
from tuneline.data.pii.measure.leak_estimate import (
    MOST_CANARIES,
    blind_spots,
    canaries_of,
    decides,
    leak_measurements,
    left_breach,
    left_measurements,
    readable,
    run_trial,
    seed_of,
)
from tuneline.data.pii.measure.planting import Canary, Token
from tuneline.data.pii.replace.scrubber import Scrubbed, make_scrubber
from tuneline.data.tables.rows import StandIn
from tuneline.statistics import count_times_odds, share_of, weighted_count

# A number in one turn, whatever the signs between its groups.
ONE_TURN = re.compile(r"\+?\d(?:[ .,/()-]{0,4}\d){4,}")


def trial_of(detector, rows, **settings):
    config = DataConfig(source="x", pii_canaries=60, **settings)
    return run_trial(detector, rows, config, "1", {}), config


def broken(trial, hits=None):
    rates = leak_measurements(DataConfig(source="x"), trial, Counter(hits))
    return {m.name for m in rates if m.ok is False}


def share(trial, name, key=lambda canary: canary.group):
    return trial.shares(key)[name].value


@pytest.mark.parametrize(("pattern", "leaks"), [(EVERYTHING, False), (re.compile("(?!)"), True)])
def test_a_detector_of_everything_passes_and_one_of_nothing_breaks_every_limit(pattern, leaks):
    trial, config = trial_of(PatternDetector(pattern), chat_rows(), pii_profile=["hipaa"])
    assert set(trial.leaked) == {leaks}
    limits = {m.name for m in leak_measurements(config, trial, Counter()) if m.rule}
    assert broken(trial) == (limits if leaks else set())
    left = left_measurements(config, trial, Counter(), 1000)
    assert {m.ok for m in left if m.rule} == {not leaks}


def test_what_rows_hold_much_of_is_measured_by_more_canaries():
    config = DataConfig(source="x", pii_canaries=20, pii_max_left=10)
    seen = PatternDetector(EVERYTHING)
    trial = run_trial(seen, chat_rows(), config, "1", {"PERSON": 100, "PHONE_NUMBER": 5})
    counts = Counter(canary.group for canary in trial.canaries)
    assert (counts["PERSON"], counts["PHONE_NUMBER"], counts["PASSWORD"]) == (200, 20, 20)
    assert canaries_of(1e6, config) == MOST_CANARIES
    assert canaries_of(1e6, config.model_copy(update={"pii_max_left": None})) == 20


def test_a_detector_of_edited_text_fails_in_chat():
    detector = PatternDetector(EDITED)
    edited, chat = (trial_of(detector, rows)[0] for rows in (edited_rows(), chat_rows()))
    assert share(edited, "PERSON") < 0.2
    assert share(chat, "PERSON") > 0.9
    assert share(chat, "STREET_ADDRESS") > 2 * share(edited, "STREET_ADDRESS")


def test_a_leak_across_turns_alone_is_caught():
    # Each number is found in a turn of its own; what is given in pieces is not.
    trial, _ = trial_of(PatternDetector(ONE_TURN), pieces_rows(), pii_profile=["pci"])
    cards = {
        form: trial.shares(lambda c: f"{c.kind} {c.form}")[f"CREDIT_CARD {form}"].value
        for form in ("disclosed", "split")
    }
    assert cards["disclosed"] < 0.1
    assert cards["split"] > 0.8
    assert "split" in blind_spots(DataConfig(source="x"), trial, ())["forms_that_leak"]


def pieces_rows():
    row = ["need help", "first four of the card number?", "5674", "next", "5533", "next"]
    roles = ("user", "assistant")
    return [
        [{"role": roles[n % 2], "content": f"{text} {k}" if n == 0 else text}
         for n, text in enumerate(row)]
        for k in range(40)
    ]  # fmt: skip


def test_the_detector_without_its_model_is_seen_to_find_numbers_and_no_streets():
    config = DataConfig(source="x", pii_canaries=60, pii_ner=False)
    trial = run_trial(make_scrubber(config), chat_rows(), config, "1", {})
    assert share(trial, "STREET_ADDRESS") > 0.5
    assert share(trial, "CREDIT_CARD") < 0.2
    assert share(trial, "AWS_ACCESS_KEY") == share(trial, "PRIVATE_KEY") == 0
    assert "leak_STREET_ADDRESS_at_most" in broken(trial)
    assert "leak_STREET_ADDRESS_at_most" not in broken(trial, {"STREET_ADDRESS": 1})
    spots = blind_spots(config, trial, ())
    assert "BIRTH_DATE" in spots["types_not_compared_with_labels"]


def test_a_detector_that_is_blind_to_a_kind_is_named():
    trial, _ = trial_of(PatternDetector(EVERYTHING, keep=re.compile("@| at ")), chat_rows())
    assert broken(trial) == {"leak_EMAIL_ADDRESS_at_most"}


@pytest.mark.parametrize(
    ("before", "probe", "after", "surrogate", "leaks"),
    [
        ("call zora now", 1, "call mia now", "mia", False),
        ("call zora now", 1, "call zora now then", None, True),
        ("call zora now", 1, "call zora now", "zora", True),
        ("call zora quin now", 1, "call zora falk now", "zora falk", True),
        ("call zora, not zora", 1, "call mia, not zora", "mia", False),
        ("pin 4 4 7 1", 1, "pin 4 2 0 9", "4 2 0 9", False),
        ("pin 44 71", 1, "pin 44 71 ok", "44 71", True),
        ("it is four two", 2, "it is four six", "four six", False),
        ("card 4111 1111", 1, "card 4111 9023", "4111 9023", True),
    ],
)
def test_a_surrogate_that_returns_the_value_is_a_leak(before, probe, after, surrogate, leaks):
    user = {"role": "user", "content": before}
    canary = Canary("PERSON", "en", "bare", "answer", [user], Token(0, probe))
    start = after.index(surrogate) if surrogate else 0
    spans = (StandIn(0, start, start + len(surrogate), "PERSON"),) if surrogate else ()
    assert readable(canary, Scrubbed([{**user, "content": after}], spans)) is leaks


def test_what_could_not_have_been_found_is_said():
    trial, _ = trial_of(PatternDetector(EVERYTHING), chat_rows())
    spots = blind_spots(DataConfig(source="x", languages=["en", "fi"]), trial, ["LOYALTY_NUMBER"])
    assert "LOCATION" in spots["types_not_looked_for"]
    assert spots["languages_without_canaries"] == ["fi"]
    assert spots["entities_without_canaries"] == ["LOYALTY_NUMBER"]
    assert spots["forms_that_leak"] == []


def test_what_is_left_decides_by_what_was_found():
    config = DataConfig(source="x", pii_profile=["pci"])
    assert left_breach("CREDIT_CARD", 3, 1, 60, config) == "fail"
    # Nothing found says that nothing is there, unless the detector is blind.
    assert left_breach("CREDIT_CARD", 0, 1, 60, config) == "warn"
    assert left_breach("CREDIT_CARD", 0, 60, 60, config) == "fail"
    assert left_breach("US_SSN", 3, 60, 60, config) == "warn", "PCI does not demand it"
    assert decides("PIN", ["pci"])
    assert not decides("US_SSN", ["pci"])


def test_the_seed_is_of_the_run_and_of_the_rows():
    assert seed_of("run", ["a"]) == seed_of("run", iter(["a"]))
    assert len({seed_of("run", ["a"]), seed_of("other", ["a"]), seed_of("run", ["a", "b"])}) == 3


def test_values_left_behind_follow_from_those_found():
    trial, config = trial_of(PatternDetector(EVERYTHING), chat_rows(), pii_profile=["pci"])
    found = {
        m.name: m.value for m in left_measurements(config, trial, Counter(CREDIT_CARD=50), 1000)
    }
    assert found["left_per_1000_rows_CREDIT_CARD"] == 0
    assert 0 < found["left_per_1000_rows_CREDIT_CARD_at_most"] < 5
    blind, _ = trial_of(PatternDetector(re.compile("(?!)")), chat_rows(), pii_profile=["pci"])
    found = {m.name: m.value for m in left_measurements(config, blind, Counter(), 1000)}
    assert found["left_per_1000_rows_CREDIT_CARD"] is None, "what leaks whole can't be counted"


def test_intervals_are_exact():
    from scipy.stats import binom, chi2

    low, high = share_of(7, 200)[1:]
    assert binom.cdf(7, 200, high) == pytest.approx(0.025)
    assert binom.sf(6, 200, low) == pytest.approx(0.025)
    assert share_of(0, 5).lower == 0
    assert share_of(5, 5).upper == 1
    # With equal weights a weighted count is Garwood's interval of a Poisson count.
    assert weighted_count([4], [1.0]) == pytest.approx(
        (4, chi2.ppf(0.025, 8) / 2, chi2.ppf(0.975, 10) / 2)
    )
    # Ten found, and as many of the canaries leak as not.
    value, lower, upper = count_times_odds(10, 100, 200)
    assert value == pytest.approx(10)
    assert 3 < lower < weighted_count([10], [1.0]).lower < 10 < upper < 25
    assert count_times_odds(0, 0, 200) == pytest.approx((0, 0, 0.03), abs=0.01)
    with pytest.raises(ValueError, match="is not a share"):
        share_of(0, 0)


ITEM = "pii_scrubbing"
LIMITS = {"pii_ner": True, "pii_canaries": 60, "pii_max_left": 1500}


def use(monkeypatch, detector):
    monkeypatch.setattr("tuneline.data.pii_scrubbing.make_scrubber", lambda *_: detector)
    monkeypatch.setattr("tuneline.data.pii_scrubbing.describe_models", lambda _: {})


def conversations():
    return [
        {"messages": [*messages[:3], {"role": "assistant", "content": "thanks, one moment"}]}
        for messages in chat_rows()
    ]


def test_step_and_gate_pass_with_a_good_detector(data_lab, monkeypatch):
    use(monkeypatch, PatternDetector(EVERYTHING))
    lab = data_lab(conversations(), pii_profile=["gdpr"], **LIMITS)
    entry = lab.upto(ITEM)
    lab.agree(ITEM, "pass")
    assert value(entry, "leak_PERSON_at_most") == pytest.approx(share_of(0, 60).upper)
    assert "a model's guess" in entry.summary
    assert value(entry, "leak_estimate_rests_on").startswith("a model's guess")
    assert len(value(entry, "canary_seed")) == 12


@pytest.mark.parametrize(
    ("profile", "verdict"), [(["gdpr"], "fail"), (["pci"], "warn")], ids=["demanded", "other"]
)
def test_a_detector_that_misses_a_type_turns_step_and_gate(data_lab, monkeypatch, profile, verdict):
    addresses = re.compile(r"(?i)@|\bat\b|\b(?:gmail|yahoo|hotmail|outlook|icloud|aol|e?-?mail)")
    use(monkeypatch, PatternDetector(EVERYTHING, keep=addresses))
    lab = data_lab(conversations(), pii_profile=profile, **{**LIMITS, "pii_max_left": 500})
    entry = lab.upto(ITEM)
    assert value(entry, "leak_EMAIL_ADDRESS") > 0.8
    gate = lab.agree(ITEM, verdict)
    assert "leak_EMAIL_ADDRESS_at_most" in gate.summary


CARD = re.compile(r"\d(?:[ -]?\d){12,}")
# Three in ten of the cards are not seen.
MISSED = re.compile(r"\d(?:[ -]?\d){11,}[ -]?[024]\b")


class HalfBlind(PatternDetector):
    """Replaces everything in the turns that it sees, and counts the cards in them."""

    def _row(self, messages):
        seen = [m["content"] for m in messages if not MISSED.search(m["content"])]
        hits = Counter(CREDIT_CARD=sum(len(CARD.findall(text)) for text in seen))
        return replace(super()._row(messages), hits=+hits)


@pytest.mark.parametrize(("has", "verdict"), [(True, "fail"), (False, "warn")])
def test_what_is_missed_fails_where_the_rows_have_it_and_warns_where_not(
    data_lab, monkeypatch, has, verdict
):
    use(monkeypatch, HalfBlind(EVERYTHING, keep=MISSED))
    rows = clean_rows(40)
    for number, row in enumerate(rows if has else ()):
        row["messages"][0]["content"] += f", my card is 4111 1111 1111 {1111 + number}"
    lab = data_lab(rows, **{**LIMITS, "pii_canaries": 200, "pii_max_left": 10})
    entry = lab.upto(ITEM)
    assert (value(entry, "found_CREDIT_CARD") if has else 0) == has * 28
    assert "left_per_1000_rows_CREDIT_CARD_at_most" in lab.agree(ITEM, verdict).summary


def test_leaked_canaries_are_shown_in_quarantine_alone(data_lab, monkeypatch):
    use(monkeypatch, PatternDetector(LONG_NUMBERS))
    lab = data_lab(conversations(), pii_profile=["gdpr"], **LIMITS)
    entry = lab.upto(ITEM)
    leaked = lab.table(ITEM, "quarantine/leaked_canaries.parquet")
    assert {"entity", "form", "place", "before", "after"} == leaked[0].keys()
    table = lab.table(ITEM, "canaries.parquet")
    assert set(table[0]) == {"entity", "form", "place", "leaked"}
    assert sum(row["leaked"] for row in table) == len(leaked)
    assert entry.verdict == "fail"
