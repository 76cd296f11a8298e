"""Personal data in the register of real chat: what is found, and what stays."""

import pytest

from tuneline.config import DataConfig
from tuneline.data.pii.dialogue import wanted
from tuneline.data.pii.digit_rule import DigitRule, frequent_numbers
from tuneline.data.pii.numbers import identifiers
from tuneline.data.pii.patterns import find
from tuneline.data.pii.scrubber import Scrubber, make_scrubber
from tuneline.data.pii.settings import Settings
from tuneline.data.pii.spoken import spoken_numbers
from tuneline.data.pii.surrogates import Surrogates

HIPAA = DigitRule(5, business=True)


@pytest.fixture(scope="module")
def scrubber():
    return make_scrubber(DataConfig(source="rows.jsonl", pii_profile=["hipaa"]), [])


def talk(scrubber, *turns):
    """Scrub a conversation, `u:` for the user and `a:` for the assistant; return its turns."""
    roles = {"u": "user", "a": "assistant"}
    messages = [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]
    return [m["content"] for m in scrubber.scrub(["key"], [messages])[0].messages]


@pytest.mark.parametrize(
    ("question", "answer", "value"),
    [
        ("who am i chatting with today", "oduya", "oduya"),
        ("may i take your full name", "sure thing its wren castellanos", "wren castellanos"),
        ("which card is it, long number please", "6011 4420 9987 1203", "9987"),
        ("account?", "its 30718", "30718"),
        ("what are the last digits of your social", "um 5561", "5561"),
        ("tell me the code we texted", "80 41 27", "80 41 27"),
        ("where should we ship it", "1187 tamarack ln boise idaho 83702", "1187 tamarack"),
        ("date of birth pls", "4 9 83", "4 9 83"),
        ("what email do you use", "ivo dot krantz at fastmail dot com", "ivo dot krantz"),
        ("and your password hint", "purple llama", "purple llama"),
        ("i did not get that, area code first", "two oh six", "two oh six"),
        ("which area code", "it is 312", "312"),
    ],
)
def test_a_question_makes_the_next_turn_an_answer(scrubber, question, answer, value):
    _, said = talk(scrubber, f"a:{question}", f"u:{answer}")
    assert value not in said


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("who am i chatting with today", "why do you need that"),
        ("account?", "i dont know it sorry"),
        ("what email do you use", "no idea, the old one"),
        ("and your password", "i forgot it"),
        ("which card is it", "the 2 for 1 offer one, it costs 4500 dollars"),
        ("how many do you want", "12 of them at 30.99 each"),
    ],
)
def test_an_answer_without_data_stays(scrubber, question, answer):
    assert talk(scrubber, f"a:{question}", f"u:{answer}") == [question, answer]


def test_a_value_goes_from_all_turns_with_the_same_surrogate(scrubber):
    number, confirmed, end = talk(
        scrubber, "u:acct 70 4481 9926", "a:so that is 7044819926?", "u:yes the one with 9926"
    )
    digits = "".join(filter(str.isdigit, number))
    assert digits in confirmed
    assert "9926" not in number + confirmed + end


def test_questions_stay_open_until_they_are_answered():
    messages = [
        {"role": role, "content": text}
        for role, text in [
            ("assistant", "please read me the card number"),
            ("user", "hold on"),
            ("assistant", "ok"),
            ("user", "5512"),
            ("assistant", "next"),
            ("user", "8840"),
        ]
    ]
    assert ["card" in topics for topics in wanted(messages)] == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "3 boxes of 5000 nails for $1299, back on 12/11 at 14:45",
        "firmware 20.4.1 on the galaxy s23 with 5000 mah and 128 gb",
        "the limit is 40000 and i paid 2500 of it in 2021",
        "page 1204, room 3021, flight 2207, error 50012",
        "it took 45 minutes for 120 km, thats 160 km/h",
        "one or two of them, four five six people at most",
    ],
)
def test_quantities_are_no_identifiers(text):
    assert list(identifiers(text, frozenset(), HIPAA)) == []


@pytest.mark.parametrize(
    ("text", "value", "entity"),
    [
        ("7712904458", "7712904458", "PHONE_NUMBER"),
        ("5430 9917 2263 4408", "5430 9917 2263 4408", "CREDIT_CARD"),
        ("mine finishes in 3309", "3309", "ID_NUMBER"),
        ("otp says 559013", "559013", "PASSWORD"),
        ("its seven double one four nine", "seven double one four nine", "ID_NUMBER"),
    ],
)
def test_unexplained_numbers_are_identifiers(text, value, entity):
    assert [(text[s:e], kind) for s, e, kind in identifiers(text, frozenset(), HIPAA)] == [
        (value, entity)
    ]


def test_numbers_of_many_rows_belong_to_nobody():
    texts = ["dial 8005550911 for help"] * 30 + ["i am at 7712904458"]
    frequent = frequent_numbers(texts)
    assert frequent == {"8005550911"}
    rule = DigitRule(5, business=True, frequent=frequent)
    assert list(identifiers("they gave me 8005550911", frozenset(), rule)) == []


def test_the_rule_is_as_strong_as_the_profile():
    text = "it printed 481216 and nothing else happened"
    assert list(identifiers(text, frozenset(), HIPAA))
    assert not list(identifiers(text, frozenset(), DigitRule(7, business=False)))


def test_amounts_in_words_are_not_spoken_numbers():
    assert not list(spoken_numbers("move one hundred and fifty bucks and twenty five percent"))
    assert [s.digits for s in spoken_numbers("four four seven one")] == [4]


def test_names_in_lower_case(scrubber):
    assert talk(scrubber, "u:suresh")[0] != "suresh"
    assert "thandiwe" not in talk(scrubber, "u:this order was placed by thandiwe mokoena")[0]
    said = "please cancel the parcel and send me the receipt"
    assert talk(scrubber, f"u:{said}") == [said]


@pytest.mark.parametrize(
    ("entity", "value"),
    [
        ("PHONE_NUMBER", "771-290-4458"),
        ("PHONE_NUMBER", "7712904458"),
        ("CREDIT_CARD", "5430 9917 2263 4408"),
        ("US_SSN", "078051120"),
        ("ID_NUMBER", "kh-93496"),
        ("PASSWORD", "8820"),
    ],
)
def test_surrogates_have_the_shape_of_the_value(entity, value):
    made = Surrogates("row", 7).of(entity, value)

    def shape(text):
        return "".join("9" if c.isdigit() else "a" if c.isalpha() else c for c in text)

    assert made != value
    assert shape(made) == shape(value)


def test_without_a_rule_only_words_name_numbers():
    scrubber = Scrubber(Settings())
    assert scrubber.find("7712904458") == ()
    assert scrubber.find("my pin is 7712")


@pytest.fixture(scope="module")
def gdpr():
    return make_scrubber(DataConfig(source="rows.jsonl"), [])


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("the wifi key is marble-otter-41 if you need it", "marble-otter-41"),
        ("my memorable word is lantern", "lantern"),
        ("I set the passphrase to: quiet river stone, ok?", "quiet river stone"),
        ("walnut.Tree is my password", "walnut.Tree"),
        ("she was born on the sixth of june seventy one", "sixth of june seventy one"),
        ("dob 3rd of the 8th 1956", "3rd of the 8th 1956"),
        ("my birthday is 9 feb '84", "9 feb '84"),
        ("i was born in 1949, on 2 march", "1949"),
        ("the card that ends in 38", "38"),
        ("case reference tq 771 204", "tq 771 204"),
        ("my booking is LM4Q9Z2", "LM4Q9Z2"),
        ("read it out: 4 4 8 1 0 2 6 7", "4 4 8 1 0 2 6 7"),
        ("we moved to Lavender Road last week", "Lavender Road"),
        ("bring it to 410 21st st apt 6 fargo nd 58102", "21st st apt 6 fargo nd 58102"),
        ("send it to 77oakfield lane", "77oakfield"),
        ("we are at rua das flores 118", "rua das flores 118"),
        ("Ola Brandvik\nElvegata 14b\n7012 Trondheim", "Elvegata 14b"),
    ],
)
def test_what_is_told_without_a_question(gdpr, said, value):
    (scrubbed,) = talk(gdpr, f"u:{said}")
    assert value not in scrubbed


@pytest.mark.parametrize(
    "said",
    [
        "my password is wrong and the passcode expired",
        "why won't my passcode work?",
        "I have forgotten my passcode to open the app",
        "what is the password policy, is there a hint",
        "is the password reset link still valid",
        "he was born to sing, a star is born",
        "our meeting ends in 15 minutes and the offer ends in 30 days",
        "i live on the second floor, and moved on to another shop",
        "the case is 5 kg and the ticket costs 12.50",
        "order 88 came in 2 boxes on the 4th of may",
        "what is the security word",
    ],
)
def test_what_speaks_of_data_and_holds_none_stays(gdpr, said):
    assert talk(gdpr, f"u:{said}") == [said]


def test_references_count_by_profile():
    said = "booking reference 80417"
    found = {
        profile: make_scrubber(
            DataConfig(source="rows.jsonl", pii_profile=[profile], pii_ner=False), []
        )
        for profile in ("gdpr", "hipaa", "pci")
    }
    kept = {profile: "80417" in talk(one, f"u:{said}")[0] for profile, one in found.items()}
    assert kept == {"gdpr": False, "hipaa": False, "pci": True}


def test_spelled_answers(gdpr):
    assert "k-o-v-a-c" not in talk(gdpr, "a:how do you spell your surname", "u:k-o-v-a-c")[1]
    _, mail = talk(gdpr, "a:which e-mail address?", "u:rook dash 5 at icloud")
    assert "rook" not in mail


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("ring plus three one six, double two four, nine oh eight, one seven", "ring "),
        ("its zero zero four nine one seven one, eight oh five, triple three one", "its "),
        ("one eight hundred five five five oh one six eight is the office", " is the office"),
        ("write to ulla underscore 83 at gmail", "write to "),
        ("use p dot osei nineteen at brightfen dot se please", " please"),
        ("ines[at]hollowell.io or nothing", " or nothing"),
        ("ines{at}hollowell{dot}pt or nothing", " or nothing"),
        ("it wanted 0 0 7 3 from me", " from me"),
        ("he texted me 440 917 just now", " just now"),
        ("passwd: Rowan*87 doesnt work", " doesnt work"),
        ("i tried grebe44nest as password", "i tried "),
        ("passcode i think its grebe4nest", "passcode i think its "),
        ("is it in the name of folarin", "is it in the name of "),
        ("my neighbour svetozar took it", " took it"),
        ("first name mbali last name ilunga", " last name "),
        ("hi its anneliek again about the fridge", " again about the fridge"),
    ],
)
def test_forms_in_which_people_give_data(scrubber, text, left):
    masked = talk(scrubber.masking(), f"u:{text}")[0]
    assert left in masked
    kept = masked.split("[")[0] + masked.split("]")[-1]
    own = set(text.split()) - set(left.split())
    assert masked != text
    assert not {word for word in own if any(map(str.isdigit, word))} & set(kept.split())


@pytest.mark.parametrize(
    "text",
    [
        "code SAVE20 wont apply to the 3 mugs",
        "it stops with code 0x80070422",
        "look at this dot on the screen",
        "type dot com at the end, or look at gmail",
        "my colleague said it is under warranty",
        "two hundred five or three hundred six of them",
        "wifi: 5 ghz only and slow",
        "max 4 doses a day",
        "please call me asap",
        "you can call me anytime, or twice a week",
        "i go by the office and time goes by fast",
        "she goes by train",
        "nobody calls me back",
        "the promo expires soon, i paid 1/2 of it",
        "snapchat is down and twitter says my account is fine",
    ],
)
def test_neighbours_of_data_stay(scrubber, text):
    assert talk(scrubber, f"u:{text}") == [text]


def test_an_answer_may_come_in_pieces(scrubber):
    _, *pieces = talk(scrubber.masking(), "a:could you read me your ssn", "u:604", "u:31", "u:8820")
    assert not any(map(str.isdigit, "".join(pieces)))


def test_a_spoken_number_with_digits_gets_a_surrogate_for_both(scrubber):
    (text,) = talk(scrubber, "u:plus 44 seven nine double one three oh six 285")
    assert not {"44", "seven", "285"} & set(text.split())


def test_a_class_named_password_hides_none():
    assert list(find('{"intent": "password", "reply": "We look at it."}')) == []
    (hit,) = find('{"password": "hunter22x"}')
    assert (hit.start, hit.end, hit.entity) == (14, 23, "PASSWORD")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("everyone calls me junior", "junior"),
        ("i go by tam mostly", "tam"),
        ("people just call me dub", "dub"),
        ("its jean-luc again", "jean-luc"),
        ("her insta is lil.bean.co", "lil.bean.co"),
        ("gamertag xX_DarkRaven_Xx", "DarkRaven"),
        ("the card expires 09/27 i think", "09/27"),
        ("visa, exp. date 4/2029", "4/2029"),
    ],
)
def test_nicknames_handles_and_the_expiry_of_a_card_are_found(scrubber, text, value):
    assert value not in talk(scrubber, f"u:{text}")[0]


def test_what_follows_an_identifier_stays(scrubber):
    (said,) = talk(scrubber, "u:the license plate is 7kdl294 blue civic")
    assert "7kdl294" not in said
    assert said.endswith("blue civic")
