"""What is asked without naming it, answered late, or said in a roundabout way."""

import re
from random import Random

import pytest

from tuneline.config import DataConfig
from tuneline.data.pii.scrubber import make_scrubber


@pytest.fixture(scope="module")
def scrubber():
    return make_scrubber(DataConfig(source="rows.jsonl"), [])


def talk(scrubber, *turns):
    """Scrub a conversation, `u:` for the user and `a:` for the assistant; return its turns."""
    roles = {"u": "user", "a": "assistant"}
    messages = [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]
    return [m["content"] for m in scrubber.scrub(["key"], [messages])[0].messages]


@pytest.mark.parametrize(
    ("turns", "value"),
    [
        # The assistant asks for what the user named.
        (["u:my passcode is refused", "a:what are you typing?", "u:green lagoon"], "lagoon"),
        # What was wrong is asked for again.
        (["a:your PIN?", "u:7712", "a:That's not it.", "u:1277"], "1277"),
        (["a:security word?", "u:falafel", "a:no", "u:baklava", "a:try again", "u:halva"], "halva"),
        # Several values in one answer.
        (["a:last four and the password", "u:0417 and marzipan"], "marzipan"),
        (["a:which pin is it", "u:either 4 0 9 9 or 9 9 0 4"], "9 9 0 4"),
        (["a:what number can i ring", "u:oh one 6 , 440 , 9 2"], "440"),
        (["a:birthday and street", "u:5th of may 1971, 9 lark rise"], "lark rise"),
    ],
)
def test_a_value_is_found_by_what_was_said_before(scrubber, turns, value):
    assert value not in talk(scrubber, *turns)[-1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("the pin for our side door is 5093, please change it", "5093"),
        ("the codeword when you ring is pomegranate", "pomegranate"),
        ("temp password she gave me w8t-Lq2 is dead", "w8t-Lq2"),
        ("user name is p_okafor7", "p_okafor7"),
        ("it says my bday is 230471", "230471"),
        ("the message says 77-40-91", "77-40-91"),
        ("policy is q r t 4 4 0 9 1", "q r t"),
        ("this is for ngaire, 4 june 1990", "4 june 1990"),
        ("maybe 4 0 0 7 1 2 is my member number", "4 0 0 7 1 2"),
    ],
)
def test_a_value_is_found_by_words_some_way_off(scrubber, text, value):
    assert value not in talk(scrubber, f"u:{text}")[0]


@pytest.mark.parametrize(
    "turns",
    [
        ["a:your PIN please", "u:one sec", "a:no rush"],
        ["a:what is the password?", "u:you asked me that before"],
        ["u:my pin is blocked", "a:You get a new one in 3 to 5 days.", "u:can i pick my own pin"],
        ["a:Your PIN?", "u:dont have it", "a:Verified by phone, thanks.", "u:balance pls"],
        ["u:the word for the day off is holiday", "a:Noted."],
        ["u:we meet on 12-11-24 or 30.06.25", "a:The 12th works."],
        ["u:i bought a toyota and a bosch drill", "a:Great."],
        ["u:my user name is wrong and the login is slow", "a:I see."],
    ],
)
def test_what_is_no_value_stays(scrubber, turns):
    assert talk(scrubber, *turns) == [turn[2:] for turn in turns]


# Made by a generator of its own, of groups and pauses that no rule names one by one.
@pytest.mark.parametrize(
    ("question", "count"),
    [
        ("whats your social", 9),
        ("last four of the ssn?", 4),
        ("account number?", 8),
        ("your pin?", 4),
        ("type the code we sent", 6),
        ("best phone number please", 10),
    ],
)
def test_a_number_is_found_in_whatever_groups_it_is_given(scrubber, question, count):
    draw, left = Random(count), 0
    for _ in range(40):
        digits = "".join(draw.choices("123456789", k=count))
        said, at = "", 0
        while at < count:
            size = draw.choice([1, 2, 3, 4])
            said += draw.choice([" ", "-", ", ", " uh ", "..."]) if at else ""
            said += digits[at : at + size]
            at += size
        lead = draw.choice(["", "hers is ", "on the paper it says ", "no wait "])
        _, answer = talk(scrubber.masking(), f"a:{question}", f"u:{lead}{said} i hope")
        left += re.search(r"\d", answer) is not None
    assert left <= 2
