import pytest
from benchmarks.workloads.pii_sentences import leaked_sentences, make_sentences
from tests.lab.data_runs import answer, chat, clean_rows
from tests.lab.runs import value

from tuneline.data.pii.measure.plants import KINDS
from tuneline.data.pii.patterns import find
from tuneline.data.pii.safe_harbor import DEMANDED_ONLY
from tuneline.data.pii.scrubber import Scrubber
from tuneline.data.pii.settings import Settings

ORDINARY = [
    "It took 12 / 15 minutes and version 1.2.3 is out, order 2024-000123.",
    "In May we may march on, see www or http for 95 reasons.",
    "I paid $95 for 100 years of wine, aged 90 days, in 2024.",
    "The code 90210 on page 5/6, item 10-12, 4.5 stars.",
    "He is 89 years old, she is 9 years old.",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_numbers_are_left_alone(text):
    assert find(text, demanded=DEMANDED_ONLY) == []


@pytest.mark.parametrize("seed", range(5))
def test_sentences_are_scrubbed_where_they_are_demanded(seed):
    sentences = make_sentences(DEMANDED_ONLY, seed)
    wanted = Scrubber(Settings(demanded=DEMANDED_ONLY))
    leaked = leaked_sentences(wanted, sentences)
    assert [c.text for c, leak in zip(sentences, leaked, strict=True) if leak] == []
    assert all(leaked_sentences(Scrubber(Settings()), sentences))


def test_the_year_may_stay_and_the_same_day_gets_the_same_surrogate():
    scrubbed = Scrubber(Settings(demanded=DEMANDED_ONLY)).scrub(
        ["row"],
        [chat("Admitted 4 May 2023, age 94, zip 02139.", "On 4 May 2023? See https://a.org/x, ok")],
    )
    user, assistant = (m["content"] for m in scrubbed[0].messages)
    assert "4 May" not in user
    assert "94" not in user
    assert "02139" not in user
    assert "a.org" not in assistant
    day = user.removeprefix("Admitted ").split(",")[0]
    assert day.endswith("2023")
    assert assistant.startswith(f"On {day}?")
    assert assistant.endswith(", ok")
    assert scrubbed[0].residual == 0


def test_hipaa_measures_and_removes_them_and_gdpr_leaves_them(data_lab):
    rows = [
        *clean_rows(40),
        {"messages": chat("I was admitted on 3/14/2024.", answer("billing", "Seen."))},
    ]
    hipaa = data_lab(rows, pii_profile=["hipaa"])
    entry = hipaa.upto("pii_scrubbing")
    assert value(entry, "found_DATE") == 1
    assert {f"leak_{entity}" for entity in DEMANDED_ONLY} <= {m.name for m in entry.measurements}
    assert hipaa.gate("pii_scrubbing").agrees
    gdpr = data_lab(rows, pii_profile=["gdpr"]).upto("pii_scrubbing")
    assert not any("DATE" in m.name and "BIRTH" not in m.name for m in gdpr.measurements)


def test_a_leak_of_a_demanded_entity_fails(data_lab, monkeypatch):
    """The limit is that of URLs alone; the others are off."""
    limits = {"pii_profile": ["hipaa"], "pii_max_leak": {**dict.fromkeys(KINDS, 1.0), "URL": 0.8}}
    whole = data_lab(clean_rows(40), **limits)
    whole.upto("pii_scrubbing")
    whole.agree("pii_scrubbing", "pass")
    monkeypatch.setattr("tuneline.data.pii.patterns.find_demanded", lambda text, entities: iter(()))
    lab = data_lab(clean_rows(40), **limits)
    lab.upto("pii_scrubbing")
    gate = lab.agree("pii_scrubbing", "fail")
    assert "excess_demanded" in gate.summary
