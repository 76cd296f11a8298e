import random

import pytest
from benchmarks.workloads.pii_sentences import make_sentences
from tests.lab.hostile_texts import REPEATED, filled, seconds

from tuneline.data.pii.checksums import is_card, is_ssn, luhn
from tuneline.data.pii.hits import PATTERN_ENTITIES, Hit, resolve
from tuneline.data.pii.patterns import find

# Put together, so that no scanner takes this file for a leak.
AWS = "AK" + "IA" + "5S44WHABEHYLBGQ5"

FOUND = {
    "EMAIL_ADDRESS": [
        "write to anna.smith+shop@mail.example.co.uk.",
        "ANNA@EXAMPLE.COM",
        "anna . smith @ example . com",
        "anna (at) example (dot) com",
        "anna at example dot com",
        "my mail is anna.k99 gmail.com",
    ],
    "PHONE_NUMBER": [
        "(212) 555-0104",
        "212-555-0104",
        "212.555.0104 x22",
        "+1 212 555 0104",
        "+44 20 7946 0566",
        "call me at 2125550104",
        "020 7946 0566",
        "my phone: 4 1 5 5 5 5 0 1 0 4",
        "+49 (0)30 1234567",
        "0049 30 1234567",
    ],
    "CREDIT_CARD": [
        "4111 1111 1111 1111",
        "4111111111111111",
        "4111-1111-1111-1111",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "３７８２ ８２２４６３ １０００５".replace("３", "3"),
        "6011 0009 9013 9424",
    ],
    "IBAN_CODE": [
        "GB29 NWBK 6016 1331 9268 19",
        "de89370400440532013000",
        "NL91-ABNA-0417-1643-00",
    ],
    "US_SSN": ["078-05-1120", "ssn 078051120", "the last four of my ssn is 1120", "078 05 1120"],
    "IP_ADDRESS": ["203.0.113.77", "2001:db8::b873", "fe80::1ff:fe23:4567:890a"],
    "MAC_ADDRESS": ["3B:22:83:6B:BE:61", "3b-22-83-6b-be-61"],
    "STREET_ADDRESS": [
        "12 Maple Street",
        "742 evergreen avenue",
        "i live at 12 oak drive",
        "1600 Amphitheatre Parkway, Mountain View, CA 94043",
        "P.O. Box 1234",
        "5 St. John's Road",
    ],
    "BIRTH_DATE": ["born on 3 May 1980", "DOB: 1980-05-03", "date of birth is 05/03/1980"],
    "ID_NUMBER": ["my passport number is X12345678", "MRN: 12345678", "Driver's license D1234567"],
    "AWS_ACCESS_KEY": [AWS, f"key={AWS.lower()}"],
    "API_KEY": [
        "sk-" + "proj-" + "aB3" * 14,
        "gh" + "p_" + "aB3" * 12,
        "xox" + "b-1234567890-abcdef",
        "ey" + "JhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM",
        "Bearer " + "a1B2" * 6,
        "api_key = " + "a1B2c3D4" * 3,
    ],
    "PASSWORD": ["my password is hunter42!", "postgres://user:s3cret@host/db"],
    "PRIVATE_KEY": [
        "-----BEGIN RSA " + "PRIVATE KEY-----\nabc\n-----END RSA " + "PRIVATE KEY-----"
    ],
}

ORDINARY = [
    "Order 4539148803436468 has not come.",
    "My order number is 212-555-0104-77.",
    "Order 1234567890 and ticket 12345678901 are late.",
    "Tracking 1Z999AA10123456784, invoice 2024-000123.",
    "It costs $1,299.00 or 1.299,00 EUR, about 3.14159 times more.",
    "On 2024-05-17 at 12:30:45 I paid 20 10 30 40 50.",
    "We waited 24 hours, drove 3 miles and have 5 items on the road.",
    "Version 1.2.3.4 of the app fails on iOS 17.4.1.",
    "Go to 192.168.1.1 or localhost 127.0.0.1.",
    "Use std::vector and a::b in C++.",
    "Meet me at 5 pm at the store, dot your i.",
    "Look at example.com for more.",
    "My password is not working, the token expired.",
    "The ratio is 10:20:30 and the score 3-2-1.",
    "Ticket 0012345678 and case 00123-4567.",
    "Row 1 2 3 4 5 6 7 8 9 10 11 12.",
    "ISBN 978-3-16-148410-0 is a book, EAN 4006381333931 a pen.",
    "Call 911 or press 1 for help.",
    "I was born in 1980 and moved in 2003.",
    "A 12 month plan on one way streets.",
    "Item A-12345 in size 38-40, T-12718 too.",
    "secret sauce, key points, access keys are lost",
]


@pytest.mark.parametrize(("entity", "text"), [(e, t) for e, texts in FOUND.items() for t in texts])
def test_found(entity, text):
    hits = find(f"So: {text} ok?")
    assert entity in {hit.entity for hit in hits}, hits


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text):
    assert find(text) == []
    assert find(text.lower()) == []


def test_no_false_alarm_on_invented_messages():
    draw = random.Random(3)
    words = "order refund parcel late please when my the card account app price open help".split()
    for _ in range(2000):
        numbers = [str(draw.randint(0, 10 ** draw.randint(1, 8))) for _ in range(3)]
        text = " ".join([*draw.sample(words, 8), f"order {numbers[0]},", numbers[1], "items"])
        assert find(text) == [], text


def test_positions_are_exact():
    text = "Mail anna@example.com, now."
    (hit,) = find(text)
    assert text[hit.start : hit.end] == "anna@example.com"


def test_stronger_types_win_overlaps():
    hits = [Hit(0, 10, "PHONE_NUMBER"), Hit(2, 12, "CREDIT_CARD"), Hit(12, 20, "PERSON")]
    text = "a 4111 1111 Anna Bell"
    assert resolve(text, hits) == [Hit(2, 12, "CREDIT_CARD"), Hit(12, 20, "PERSON")]


def test_checksums():
    assert luhn("4111111111111111")
    assert not is_card("4111111111111112")
    assert not is_card("0000000000000000")
    assert is_ssn("078-05-1120")
    assert not any(map(is_ssn, ("000-12-3456", "666-12-3456", "123-00-4567", "123-45-0000")))


@pytest.mark.parametrize("seed", range(5))
def test_every_pattern_sentence_is_found(seed):
    sentences = make_sentences(PATTERN_ENTITIES, seed)
    missed = [c for c in sentences if not find(c.text)]
    assert missed == []


@pytest.mark.parametrize(("lead", "piece"), REPEATED)
def test_time_grows_with_the_length_only(lead, piece):
    text = filled(lead, piece, 300_000) + " @ dot (at) .com key"
    assert seconds(lambda: find(text), limit=8) < 8
