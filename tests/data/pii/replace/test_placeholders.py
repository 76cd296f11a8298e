import json

import pytest

from tuneline.data.pii.placeholders import PlaceholderScrubber
from tuneline.errors import UserError


def turn(content, role="user"):
    return {"role": role, "content": content}


def test_values_become_placeholders_and_are_counted():
    messages = [
        turn("I am jane.doe@example.org, call me on +1 202 555 0143 or +1 202 555 0199"),
        turn("the key is sk-proj-abcdEFGH1234ijklMNOP5678"),
        turn("Where is order 12345?"),
    ]
    scrubbed, counts = PlaceholderScrubber(["en"])(messages)
    assert scrubbed[0]["content"] == (
        "I am [EMAIL_ADDRESS], call me on [PHONE_NUMBER] or [PHONE_NUMBER]"
    )
    assert scrubbed[1]["content"] == "the key is [API_KEY]"
    assert scrubbed[2] == messages[2]
    assert counts == {"EMAIL_ADDRESS": 1, "PHONE_NUMBER": 2, "API_KEY": 1}


def test_a_second_time_nothing_changes():
    messages = [turn("password: hunter22x, card 4111 1111 1111 1111, 10.1.2.3, ssn 219-09-9999")]
    once, counts = PlaceholderScrubber(["en"])(messages)
    assert sum(counts.values()) == 4
    again, none = PlaceholderScrubber(["en"])(once)
    assert (again, sum(none.values())) == (once, 0)


def test_a_json_answer_stays_json_and_escapes_hide_nothing():
    answer = '{"reply": "write to jane.doe\\u0040example.org", "card": 4111111111111111}'
    (scrubbed,), counts = PlaceholderScrubber(["en"])([turn(answer, "assistant")])
    assert json.loads(scrubbed["content"]) == {
        "reply": "write to [EMAIL_ADDRESS]",
        "card": "[CREDIT_CARD]",
    }
    assert sum(counts.values()) == 2


def test_the_name_of_a_json_field_is_not_overlooked():
    answer = '{"jane.doe@example.org": {"state": "open"}}'
    (scrubbed,), _ = PlaceholderScrubber(["en"])([turn(answer, "assistant")])
    assert "jane.doe" not in scrubbed["content"]


def test_the_patterns_of_a_language_apply_if_it_is_named():
    messages = [turn("Mein Kennwort lautet Sommer2024x, geboren am 3. März 1981")]
    english, _ = PlaceholderScrubber(["en"])(messages)
    german, counts = PlaceholderScrubber(["de"])(messages)
    assert "Sommer2024x" in english[0]["content"]
    assert "Sommer2024x" not in german[0]["content"]
    assert counts["PASSWORD"] == 1


def test_a_language_without_patterns_is_refused():
    with pytest.raises(UserError, match="no patterns of personal data for xx"):
        PlaceholderScrubber(["en", "xx"])
