"""Canaries are given in loose ways where the dataset is chat, and in no other."""

import re
from random import Random

from tests.data.pii.canaries.test_planting import chat_rows, edited_rows, made, planted
from tests.lab.detectors import PatternDetector

from tuneline.config import DataConfig
from tuneline.data.pii.canaries.canary import PARTIAL
from tuneline.data.pii.canaries.lists import lists
from tuneline.data.pii.canaries.loose import loose_ways
from tuneline.data.pii.canaries.numbers import oddly_grouped
from tuneline.data.pii.canaries.register import measure_register
from tuneline.data.pii.canaries.secrets import in_tens
from tuneline.data.pii.leak_estimate import run_trial

# A detector that knows the words of a form, and finds a PIN after them alone.
FORM_WORDS = re.compile(r"(?:pin|code|otp)(?: code)?(?: is|:)? \S.*", re.IGNORECASE)


def test_only_chat_is_loose():
    chat, edited = (
        loose_ways("PIN", "en", measure_register(rows)) for rows in (chat_rows(), edited_rows())
    )
    assert chat.share > 0.5
    assert edited.share == 0
    assert loose_ways("PIN", "de", measure_register(chat_rows())).share == 0


def test_loose_ways_are_many():
    ways = loose_ways("PIN", "en", measure_register(chat_rows()))
    draw = Random(1)
    assert len({ways.phrase(draw) for _ in range(500)}) > 400
    assert all("{}" in ways.phrase(draw) for _ in range(50))
    canaries = made(chat_rows(), ["PASSWORD"], per_kind=200)
    texts = [planted(canary) for canary in canaries if canary.kind == "PIN"]
    nouns = lists("loose")["en"]["nouns"]["PIN"]
    assert sum(any(noun in text for noun in nouns) for text in texts) > 20


def test_a_detector_of_the_words_of_forms_is_seen_to_miss_loose_ones():
    config = DataConfig(source="x", pii_canaries=150)
    edited, chat = (
        run_trial(PatternDetector(FORM_WORDS), rows, config, "1").shares(lambda c: c.group)["PIN"]
        for rows in (edited_rows(), chat_rows())
    )
    assert chat.value > edited.value + 0.15


def test_numbers_are_grouped_in_any_way_without_losing_a_digit():
    draw = Random(4)
    ways = {oddly_grouped(draw, "123456789") for _ in range(50)}
    assert len(ways) > 40
    assert {re.sub(r"\D", "", way) for way in ways} == {"123456789"}


def test_codes_are_said_in_tens():
    assert in_tens("4207") == "forty two oh seven"
    assert in_tens("1980") == "nineteen eighty"
    assert in_tens("50012") == "fifty oh one two"


def test_partial_values_follow_loose_words_too():
    canaries = made(chat_rows(), ["US_SSN"], per_kind=150)
    partial = [planted(canary) for canary in canaries if canary.form == PARTIAL]
    nouns = lists("loose")["en"]["nouns"]["US_SSN"]
    assert any(text.startswith(tuple(nouns)) or " soc" in text for text in partial)
