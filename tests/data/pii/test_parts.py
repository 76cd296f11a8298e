"""Long texts are read in parts; what identifies somebody is never cut."""

import random
from itertools import pairwise

import pytest
from tests.lab.hostile_texts import seconds

from tuneline.data.pii.hits import Hit, resolve
from tuneline.data.pii.parts import LONGEST, parts
from tuneline.data.pii.patterns import find
from tuneline.data.pii.placeholders import PlaceholderScrubber

BODY = "".join(random.Random(3).choices("ABCDEFabcdef0123456789", k=5_000))
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----"
TOKEN = f"eyJhbGciOiJI.{BODY}.{BODY[:100]}"
VALUES = ("anna.k99@example.com", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", KEY, TOKEN)
SAID = (*VALUES, "my password is hunter22x", "call me at 2125550104")


@pytest.mark.parametrize("before", range(1_900, 2_040, 7))
def test_nothing_that_identifies_is_cut(before):
    text = "".join(f"{'so it is, ' * 300}"[:before] + f" {said}. " for said in SAID * 2)
    cut = list(parts(text))
    assert "".join(part for _, part in cut) == text
    assert all(text.startswith(part, start) for start, part in cut)
    for value in VALUES:
        assert sum(value in part for _, part in cut) == 2
    assert all(len(part) <= LONGEST or BODY in part for _, part in cut)
    assert len(find(text)) == 2 * len(SAID)
    (scrubbed,), counts = PlaceholderScrubber(["en"])([{"role": "user", "content": text}])
    assert counts.total() == 2 * len(SAID)
    assert "hunter22x" not in scrubbed["content"]


def test_overlaps_of_many_hits_are_settled_in_time():
    text = "7 ab " * 60_000
    kinds = ("ID_NUMBER", "PHONE_NUMBER", "STREET_ADDRESS", "EMAIL_ADDRESS", "PERSON")
    draw = random.Random(1)
    starts = [draw.randrange(len(text) - 60) for _ in range(40_000)]
    hits = [Hit(start, start + draw.randint(1, 60), draw.choice(kinds)) for start in starts]
    assert seconds(lambda: resolve(text, hits), limit=10) < 10
    settled = resolve(text, hits)
    assert all(one.end <= other.start for one, other in pairwise(settled))
