"""The samples that ship: known bytes, and exactly the copies and over-long rows that are named."""

import hashlib
import json
from itertools import combinations

import pytest
from benchmarks.workloads.support_chat import PLANTED

from tuneline.data.near_duplicates.shingles import char_grams, normalise
from tuneline.data.sample import FREE_TEXT, SAMPLES, SUPPORT
from tuneline.data.sources.find_files import find_files

DIGESTS = {
    SUPPORT: "db3083c4a17704a4e6472c101d92553fdf258ebec401ee25d1656a7f1f68dcfd",
    PLANTED: "1e4717274a3f5a9f103224667bdcb5b8ab4c400cefde509619032eae6b8a2a88",
    FREE_TEXT: "ff2ed53413e0d5d8c1ef9574b3a1ae0392ef0c6eedb0b06ab58875eaabd41451",
}


@pytest.mark.parametrize("path", DIGESTS, ids=lambda path: path.name)
def test_the_bytes_are_those_that_the_docs_count(path):
    assert hashlib.sha256(path.read_bytes()).hexdigest() == DIGESTS[path]


def test_their_addresses_name_them():
    assert [file.local for file in find_files(SAMPLES)] == [SUPPORT, FREE_TEXT]


def test_copies_are_near_duplicates_of_their_originals():
    lines = SUPPORT.read_bytes().splitlines()
    planted = json.loads(PLANTED.read_bytes())
    copies = [fault for fault in planted["planted"] if "of" in fault["detail"]]
    assert len(copies) == 48
    for fault in copies:
        one, other = (
            json.loads(lines[number - 1])["messages"][1]["content"]
            for number in (fault["line"], fault["detail"]["of"])
        )
        grams, others = char_grams(normalise(one)), char_grams(normalise(other))
        assert len(grams & others) / len(grams | others) >= 0.8


def test_no_two_notes_are_near_duplicates():
    rows = [json.loads(line)["messages"] for line in FREE_TEXT.read_bytes().splitlines()]
    grams = [char_grams(normalise(note["content"])) for note, _ in rows]
    assert len(grams) == len({board["content"] for _, board in rows}) == 400
    assert all(len(one & two) / len(one | two) < 0.8 for one, two in combinations(grams, 2))
