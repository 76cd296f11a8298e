import json
import pickle

import pytest

from tuneline.data.pii.measure.witness import answers_torn
from tuneline.data.pii.replace.scrubber import PlaceholderScrubber, make_placeholder_scrubber
from tuneline.errors import UserError
from tuneline.serving.gateway.logs.production_log import UnscrubbedTexts, scrubbed_texts


def scrub(messages, languages=("en",)):
    return PlaceholderScrubber(languages)([messages])[0]


def turn(content, role="user"):
    return {"role": role, "content": content}


def test_values_become_placeholders_and_are_counted():
    messages = [
        turn("I am jane.doe@example.org, call me on +1 202 555 0143 or +1 202 555 0199"),
        turn("the key is sk-proj-abcdEFGH1234ijklMNOP5678"),
        turn("Where is order 12345?"),
    ]
    scrubbed, counts = scrub(messages)
    assert scrubbed[0]["content"] == (
        "I am [EMAIL_ADDRESS], call me on [PHONE_NUMBER] or [PHONE_NUMBER]"
    )
    assert scrubbed[1]["content"] == "the key is [API_KEY]"
    assert scrubbed[2] == messages[2]
    assert counts == {"EMAIL_ADDRESS": 1, "PHONE_NUMBER": 2, "API_KEY": 1}


def test_a_second_time_nothing_changes():
    messages = [turn("password: hunter22x, card 4111 1111 1111 1111, 10.1.2.3, ssn 219-09-9999")]
    once, counts = scrub(messages)
    assert sum(counts.values()) == 4
    again, none = scrub(once)
    assert (again, sum(none.values())) == (once, 0)


def test_a_json_answer_stays_json_and_escapes_hide_nothing():
    answer = '{"reply": "write to jane.doe\\u0040example.org", "card": 4111111111111111}'
    (scrubbed,), counts = scrub([turn(answer, "assistant")])
    assert json.loads(scrubbed["content"]) == {
        "reply": "write to [EMAIL_ADDRESS]",
        "card": "[CREDIT_CARD]",
    }
    assert sum(counts.values()) == 2
    answer = '{"jane.doe@example.org": {"state": "open"}}'
    (scrubbed,), _ = scrub([turn(answer, "assistant")])
    assert "jane.doe" not in scrubbed["content"], "the name of a field"


def test_the_model_finds_names_and_a_system_prompt_is_read_once():
    scrubber = make_placeholder_scrubber(["en", "de"], model=True)
    system = turn("The customer is Anna Kowalczyk. " + "Be brief. " * 400, "system")
    batch = [[system, turn(f"mein name ist jürgen müller, vorgang {n}")] for n in range(40)]
    results = scrubber(batch)
    for messages, counts in results:
        assert [message["role"] for message in messages] == ["system", "user"]
        assert "Kowalczyk" not in messages[0]["content"]
        assert "müller" not in messages[1]["content"]
        assert counts["PERSON"] >= 2
    assert pickle.loads(pickle.dumps(scrubber))(batch) == results


ASKED = "Hi, Jelena Kaczmarek here, my order is XK-44713. "
AGREED = [
    # What is found in one turn, by its form or in its sentence, counts in the others.
    (ASKED, "I will look after it, kaczmarek.", "[PERSON]"),
    (ASKED, '{"who": "Kaczmarek", "order": "XK-44713"}', "[PERSON]"),
    ("olek wants it back", "Thank you! His name is Olek Petrovsky, and Olek pays.", "[PERSON]"),
    ("is 88214376 yours?", "Yes, your account number is 88214376.", "[ID_NUMBER]"),
]


@pytest.mark.parametrize(("asked", "answer", "expected"), AGREED)
def test_question_and_answer_of_a_log_agree(asked, answer, expected):
    given = UnscrubbedTexts([turn(asked)], answer, "r1")
    scrub = make_placeholder_scrubber(["en"], model=True)
    ((turns, made, _),) = scrubbed_texts([given], scrub)
    after = [*turns, turn(made, "assistant")]
    assert all(expected in message["content"] for message in after)
    assert not answers_torn(given.conversation(), after, None)


def test_an_unknown_language_is_refused():
    with pytest.raises(UserError, match="not found in xx, but in de, en"):
        PlaceholderScrubber(("en", "xx"))
