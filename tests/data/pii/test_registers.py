"""Personal data in forms that chats of other writers have, and what looks like it there."""

import pytest
from tests.data.pii.test_chat import talk

from tuneline.config import DataConfig
from tuneline.data.pii import scrubber as scrubbing
from tuneline.data.pii.hits import Hit, resolve
from tuneline.data.pii.plates import plates
from tuneline.data.pii.scrubber import make_scrubber


@pytest.fixture(scope="module")
def scrubber():
    return make_scrubber(DataConfig(source="rows.jsonl", pii_profile=["gdpr"]), [])


LEAKS = [
    # Names: before a number, with particles, as words, in lists of what is asked for.
    (["u:marisol teague 5583 and the code is 9917"], ["marisol", "teague"]),
    (["u:thanks, Annelies van den Bosch"], ["Bosch"]),
    (["a:Dear Ms. van den Bosch, welcome."], ["Bosch"]),
    (["u:call me pearl"], ["pearl"]),
    (["u:its me again", "a:Of course. Name, birthday and street please", "u:wanjiru"], ["wanjiru"]),
    (["a:name on the ticket?", "u:hope q strandberg"], ["hope", "strandberg"]),
    (["u:it says macgillycuddy on my bill"], ["macgillycuddy"]),
    (["u:my mother is paulina. im ernesto"], ["paulina", "ernesto"]),
    (["u:note from darren pickle 07700 912 345"], ["darren", "pickle"]),
    # Numbers: what is asked for in pieces, with labels, slashes and words for letters around them.
    (["a:phone or account number?", "u:415 7620931"], ["7620931"]),
    (["u:card 4012 8888 1881 4417 exp 11-28 cvc 042 shes the holder"], ["042"]),
    (["u:policy no MOT/HOME/5581023"], ["MOT/", "5581023"]),
    (["a:number?", "u:i think 5502-8817-X"], ["5502", "8817"]),
    # The month until which a card is valid.
    (["u:visa 4012 8888 1881 4417 valid thru 11/29"], ["11/29"]),
    (["a:Card number?", "u:4012 8888 1881 4417", "a:And the expiry?", "u:may 29"], ["may 29"]),
    # Plates, handles, accounts.
    (["u:hit by a blue van, plate KRD 5519"], ["KRD", "5519"]),
    (["u:i saw part of the plate of that car 7XJ something"], ["7XJ"]),
    (["u:my black polo GX19 ODL was towed"], ["GX19", "ODL"]),
    (["a:Registration: MT66 KPV. Date: today."], ["MT66", "KPV"]),
    (["u:on there im @lu_fern_22"], ["lu_fern_22"]),
    (["u:pay to sunita.r@okbank"], ["sunita.r"]),
    (["u:worksite. user adeyemi.kola"], ["adeyemi"]),
    # Dates of birth said again.
    (
        ["a:Your date of birth?", "u:31.1.1994 i mean", "a:Thank you, 13 January 1994?"],
        ["13 January"],
    ),
    (["a:dob is 1994-13-01 here", "u:no, 13 jan 94"], ["1994-13-01", "13 jan"]),
    (["u:the baby, born 2021 / 04 / 17"], ["2021 / 04 / 17"]),
    # Addresses with a part that was taken for a card's digits.
    (
        ["a:Card ending 4471. Where to?", "u:118 w larkmoor ln apt 3b tucson az 85704"],
        ["larkmoor", "118", "85704"],
    ),
    (["u:forward it to unit 5/88 gertrude st"], ["5/88", "gertrude"]),
]


@pytest.mark.parametrize(("turns", "values"), LEAKS, ids=[turns[-1] for turns, _ in LEAKS])
def test_personal_data_goes(scrubber, turns, values):
    said = " ".join(talk(scrubber, *turns))
    assert not [value for value in values if value in said], said


@pytest.mark.parametrize(
    "turns",
    [
        # Words of chat, spellings, titles, speakers, firms, places.
        ["u:brb", "a:Sure.", "u:nah"],
        ["a:What colour is the bag?", "u:dark green, idk the brand"],
        ["a:500 Mbps is 59.99."],
        ["a:We have a charge from Norton Peak Software."],
        ["u:flight 286 from San Francisco"],
        ["u:Caller: Yes, good morning, I am calling about my seat."],
        ["u:its a white kia", "a:Ok."],
        # Sighs and words for what follows are no digits; what is counted is no code.
        ["a:$99, waived with online order code FIBER99.", "u:upload speed", "a:940.", "u:cool"],
        ["a:Please never post your password here."],
        ["a:Install KB4486153 and look at line 2281 of the log."],
        # Of a card only, and no other month.
        ["u:my visa is fine but the coupon of 12/27 is gone", "a:It was for orders of 11/27."],
        # The question is answered, and what follows tells something else.
        [
            "a:name and date of birth?",
            "a:Found you. The deductible is about five thousand dollars on this home.",
            "u:thats alot",
        ],
    ],
)
def test_what_is_nobodys_stays(scrubber, turns):
    assert talk(scrubber, *turns) == [turn[2:] for turn in turns]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("oh sorry its 8821", "oh sorry its "),
        ("use this one 5203 8814 0097 6621", "use this one "),
        ("just the last four 8853", "just the last four "),
    ],
)
def test_a_word_before_a_number_is_no_digit(scrubber, text, left):
    _, said = talk(scrubber, "a:what is the pin of the card?", f"u:{text}")
    assert said.startswith(left)
    assert said != text


def test_a_title_stays():
    scrubber = make_scrubber(DataConfig(source="rows.jsonl", pii_profile=["gdpr"]), [])
    (said,) = talk(scrubber, "a:Thank you, Mr. Throckmorton. The fee is gone.")
    assert said.startswith("Thank you, Mr. ")
    assert "Throckmorton" not in said


def test_what_a_surer_hit_leaves_of_another_is_replaced():
    text = "313 8620145 rosa maria lopez"
    pieces = [Hit(0, 3, "ID_NUMBER"), Hit(0, 11, "PHONE_NUMBER")]
    assert resolve(text, pieces) == [Hit(0, 11, "PHONE_NUMBER")]
    people = [Hit(12, 22, "PERSON"), Hit(17, 28, "PERSON")]
    assert resolve(text, people) == [Hit(12, 28, "PERSON")]
    beside = [Hit(4, 11, "PASSWORD"), Hit(4, 16, "PERSON")]
    assert resolve(text, beside) == [Hit(4, 11, "PASSWORD"), Hit(12, 16, "PERSON")]


def test_a_plate_needs_letters_and_digits():
    for text in ("plate is on its way", "the plate costs 4471", "registration at 9 am today"):
        assert not list(plates(text, text.lower())), text


def test_a_scrubber_that_drops_overlapping_hits_leaks(monkeypatch):
    def first_of_each(_, hits):
        chosen = []
        for hit in sorted(hits, key=lambda hit: (hit.entity, hit.start)):
            if not any(hit.start < other.end and other.start < hit.end for other in chosen):
                chosen.append(hit)
        return sorted(chosen, key=lambda hit: hit.start)

    monkeypatch.setattr(scrubbing, "resolve", first_of_each)
    scrubber = make_scrubber(DataConfig(source="rows.jsonl", pii_profile=["gdpr"]), [])
    assert "7620931" in " ".join(talk(scrubber, "a:phone or account number?", "u:415 7620931"))
