"""What the detector finds in conversations, and what it leaves, with the usual model."""

import json
import random

import pytest
from tests.lab.hostile_texts import FRAGMENTS, REPEATED, filled, seconds

from tuneline.data.near_duplicates.compared_text import Affixes
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Hit, Settings
from tuneline.data.pii.find.texts import Shared


def row(*turns):
    """A conversation: `u:` for the user, `a:` for the assistant, `s:` for the system."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def masked(detector, *turns, shared=None):
    """The turns of a conversation, with the type in place of each hit."""
    messages = row(*turns)
    (found,) = detector.rows([messages], shared or Shared())
    said = []
    for message in messages:
        text, at = "", 0
        for hit in found.get(message["content"], ()):
            text += message["content"][at : hit.start] + f"[{hit.entity}]"
            at = hit.end
        said.append(text + message["content"][at:])
    return said


FOUND = [
    # Names, addresses and numbers by the model, named by check digits and cues.
    ("my name is dana kowalczyk", "my name is [PERSON]"),
    ("this is Ms. van den Bosch again", "this is Ms. [PERSON] again"),
    ("I moved to 12 Elm Street, Apt. 4, Springfield IL 62704.", "I moved to [STREET_ADDRESS]."),
    ("ich wohne hauptstr. 5, 50667 köln", "ich wohne [STREET_ADDRESS]"),
    ("card 4111 1111 1111 1111", "card [CREDIT_CARD]"),
    ("my card is 4111 1111 1111 1112", "my card is [ID_NUMBER]"),
    ("call me on 415 555 0134", "call me on [PHONE_NUMBER]"),
    ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [IBAN_CODE] please"),
    ("my ssn is 536-22-8841", "my ssn is [US_SSN]"),
    ("member id ABC123456", "member id [ID_NUMBER]"),
    ("write to jo.doe@mail.example.org.", "write to [EMAIL_ADDRESS]."),
    ("from 203.0.113.7 or 2001:db8::8a2e:370:7334", "from [IP_ADDRESS] or [IP_ADDRESS]"),
    ("device 00:1B:44:11:3A:B7", "device [MAC_ADDRESS]"),
    # What models do not know, by a cue.
    ("I was born on 03/09/1981", "I was born on [BIRTH_DATE]"),
    ("né le 9 mars 1981", "né le [BIRTH_DATE]"),
    ("ich bin am 9.3.1981 geboren", "ich bin am [BIRTH_DATE] geboren"),
    ("my password is Maple_412!", "my password is [PASSWORD]"),
    ("contraseña: mapletree", "contraseña: [PASSWORD]"),
    ("uafw_DGkEM is the password", "[PASSWORD] is the password"),
    ("the pin is 4471", "the pin is [PASSWORD]"),
    ("it expires 04/27, valid", "it expires [CREDIT_CARD], valid"),
    ("the card ending in 8802", "the card ending in [ID_NUMBER]"),
    ("its seven double one four nine", "its [ID_NUMBER]"),
    ("it is spelled k-o-v-a-c", "it is spelled [ID_NUMBER]"),
    ("login: t_kessler81", "login: [ID_NUMBER]"),
    ("mail ivo dot krantz at fastmail dot com", "mail [EMAIL_ADDRESS]"),
    ("send it to ivo 45 gmailcom", "send it to [EMAIL_ADDRESS]"),
    # Secrets: our shapes, and those that detect-secrets adds.
    ("key sk-proj-aB3dE5fG7hI9jK1lM3nO5", "key [API_KEY]"),
    (f"token SG.{'aB3' * 7}c.{'dE4' * 14}f ok", "token [API_KEY] ok"),
]


@pytest.mark.parametrize(("said", "left"), FOUND, ids=[said for said, _ in FOUND])
def test_personal_data_is_found_and_named(detectors, said, left):
    assert masked(detectors["gdpr"], f"u:{said}") == [left]


LEFT = [
    "please cancel the parcel and send me the receipt",
    "so 23 x 14.50 = 333.50",
    "3 boxes of 5000 nails for $1299, back on 12/11 at 14:45",
    "it took 45 minutes for 120 km, thats 160 km/h",
    "the limit is 40000 and i paid 2500 of it in 2021",
    "my password is wrong and the passcode expired",
    "why won't my passcode work?",
    "firmware 20.4.1 of the router, version 10.0.0.1",
    "I live in Berlin",
    "it costs 4512 dollars",
    "we have 1243 people and paid 1350",
    "Die Bestellung kam am 3.5.2024 nicht an, es waren 35 Euro.",
    "the error code 404 again",
    "I can't open the login link.",
    "ask Acme Support",
]


@pytest.mark.parametrize("said", LEFT)
def test_ordinary_text_stays(detectors, said):
    assert masked(detectors["gdpr"], f"u:{said}") == [said]


TALKS = [
    (("a:who am i chatting with, your name please", "u:oduya"), ["[PERSON]"]),
    (("a:What is your date of birth?", "u:4 9 83"), ["[BIRTH_DATE]"]),
    (("a:and your pin?", "u:oh its 4471"), ["oh its [PASSWORD]"]),
    (("a:your password please", "u:purple llama"), ["[PASSWORD]"]),
    (("a:Could you share the account number?", "u:its 30718"), ["its [ID_NUMBER]"]),
    (("a:number?", "u:604", "a:ok", "u:8820"), ["[ID_NUMBER]", "[ID_NUMBER]"]),
    (("a:¿Cuál es su dirección?", "u:calle mayor 3 madrid"), ["[STREET_ADDRESS]"]),
    # A question that asks for no data, and answers without any.
    (("a:What is the name of the shop?", "u:mega deals"), ["mega deals"]),
    (("a:Please never post your password.", "u:oops my bad"), ["oops my bad"]),
    (("a:account number and amount?", "u:89.99"), ["89.99"]),
    (("a:who am i chatting with?", "u:why do you need that"), ["why do you need that"]),
    # A value is found wherever it stands again, a word of a name where it is one.
    (
        ("u:im dana kowalczyk", "a:Thanks, Kowalczyk.", "u:kowalczyk, yes"),
        ["im [PERSON]", "[PERSON], yes"],
    ),
    (
        ("u:my name is Mark Jansen", "a:ok", "u:they mark it as done"),
        ["my name is [PERSON]", "they mark it as done"],
    ),
    # The first word of a sentence has a capital anyway.
    (
        ("u:my name is Dana Parcel", "a:ok", "u:Parcel arrived today. The Parcel is here"),
        ["my name is [PERSON]", "Parcel arrived today. The [PERSON] is here"],
    ),
    (("u:my birthday is 12 april",), ["my birthday is [BIRTH_DATE]"]),
    # A date of birth in another form.
    (
        (
            "a:date of birth?",
            "u:14 march 1991",
            "a:thanks",
            "u:yes March 14th 1991, not 3 may 2026",
        ),
        ["[BIRTH_DATE]", "yes [BIRTH_DATE], not 3 may 2026"],
    ),
    (("a:member kh-934961?", "u:yes kh 934961"), ["yes [ID_NUMBER]"]),
]


@pytest.mark.parametrize(("turns", "left"), TALKS, ids=[turns[-1] for turns, _ in TALKS])
def test_a_question_and_its_answer_are_read_together(detectors, turns, left):
    said = masked(detectors["gdpr"], *turns)
    assert [text for turn, text in zip(turns, said, strict=True) if turn[0] == "u"] == left


def test_profiles_decide_what_counts(detectors):
    said = "u:Ann Lee of Dallas, zip 75201, born 3 May 1930, is 93 years old: www.annlee.org"
    assert masked(detectors["hipaa"], said) == [
        "[PERSON] of [LOCATION], zip [POSTAL_CODE], born [BIRTH_DATE], is [AGE_OVER_89] years old: "
        "[URL]"
    ]
    assert masked(detectors["gdpr"], said)[0].startswith("[PERSON] of Dallas, zip 75201, born [")
    assert masked(detectors["pci"], said)[0].startswith("Ann Lee of Dallas")


@pytest.mark.parametrize(
    ("turns", "left"),
    [
        (("u:she is aged 97 and turned 93",), "she is aged [AGE_OVER_89] and turned [AGE_OVER_89]"),
        (("a:May I have your age?", "u:its 93"), "its [AGE_OVER_89]"),
        (("a:And how old is she?", "u:39"), "39"),
        (("u:turn 45 degrees, age 35",), "turn 45 degrees, age 35"),
    ],
)
def test_ages_over_89(detectors, turns, left):
    assert masked(detectors["hipaa"], *turns)[-1] == left


def test_offsets_are_those_of_the_original_text(detectors):
    text = (
        "mail jo\u200bdoe@mail.example.org \u2013 Jose\u0301 Mu\u0308ller, "
        "pin \uff14\uff14\uff17\uff11"
    )
    (found,) = detectors["gdpr"].rows([row(f"u:{text}")], Shared())
    assert [text[hit.start : hit.end] for hit in found[text]] == [
        "jo\u200bdoe@mail.example.org",
        "Jose\u0301 Mu\u0308ller",
        "\uff14\uff14\uff17\uff11",
    ]


def test_a_name_is_found_at_every_place_of_a_long_text(detectors, usual_model):
    shifted = Detector(Settings(models=(usual_model,), shifted=True))
    filler = (
        "the parcel was fine but the second box had a dent in it and would not close . ".split()
    )
    for place in range(0, 400, 37):
        words = (filler * 30)[:400]
        words[place : place + 5] = ["my", "name", "is", "Maria", "Lopez"]
        text = " ".join(words)
        for detector in (detectors["gdpr"], shifted):
            (found,) = detector.rows([row(f"u:{text}")], Shared())
            assert any("Maria" in text[h.start : h.end] for h in found[text]), place


def test_no_model_reads_what_rows_share_and_labels_stay(detectors, usual_model):
    detector = Detector(Settings(models=(usual_model,), label_field="intent"))
    shared = Shared(frozenset({"You are Mona of Elm Street."}), Affixes("Hello Mona! ", ""))
    said = masked(
        detector, "s:You are Mona of Elm Street.", "u:Hello Mona! this is tess", shared=shared
    )
    assert said == ["You are Mona of Elm Street.", "Hello Mona! this is [PERSON]"]
    answer = json.dumps({"intent": "dana kowalczyk", "reply": "Hi Dana Kowalczyk"})
    (found,) = detector.rows([row(f"a:{answer}")], Shared())
    assert found == {"Hi Dana Kowalczyk": (Hit(3, 17, "PERSON"),)}


def test_patterns_alone_need_no_model(detectors):
    detector = Detector(Settings())
    assert [hit.entity for hit in detector.shapes("pin 4471, 4111 1111 1111 1111")] == [
        "PASSWORD",
        "CREDIT_CARD",
    ]
    assert masked(detector, "u:dana kowalczyk", "u:otp 559013") == [
        "dana kowalczyk",
        "otp [PASSWORD]",
    ]


@pytest.mark.parametrize("size", [300_000])
def test_hostile_repetitions_take_linear_time(detectors, size):
    draw = random.Random(7)
    pieces = [("", piece) for piece in draw.sample(FRAGMENTS, 3)] + [("", "-"), ("", "DE89 ")]
    for lead, piece in [*pieces, *draw.sample(REPEATED, 2)]:
        text = filled(lead, piece, size)
        messages = row("a:What is your account number?", f"u:{text}")
        assert seconds(lambda: detectors["hipaa"].shapes(text), 8) < 8, piece  # noqa: B023
        assert seconds(lambda: detectors["hipaa"].rows([messages], Shared()), 20) < 20, piece  # noqa: B023
