"""The free-text sample: reproducible, varied, and consistent between note and answer."""

import hashlib
import json
import re

import pytest

from tuneline.asking.tasks import choose_task
from tuneline.cli import main
from tuneline.data.near_duplicates.shingles import char_grams, normalise
from tuneline.data.sample.free_text import NoteWriter, make_free_text
from tuneline.data.sample.text import Draw
from tuneline.errors import UserError

# The bytes of seed 7 on every platform and Python version.
SHA256 = "e861aadf70a38e3eb06f5b33fc59e992f29d63475f9c257e45930d7c46c963e5"


@pytest.fixture(scope="module")
def pairs():
    rows = [json.loads(line)["messages"] for line in make_free_text(7)]
    assert all([turn["role"] for turn in row] == ["user", "assistant"] for row in rows)
    return [(row[0]["content"], row[1]["content"]) for row in rows]


def test_the_same_seed_gives_the_same_bytes():
    assert hashlib.sha256(b"\n".join(make_free_text(7))).hexdigest() == SHA256
    assert make_free_text(8, 5) != make_free_text(7, 5)


def test_every_row_differs_from_every_other(pairs):
    assert len(pairs) == 400
    assert len({board for _, board in pairs}) == 400
    grams = [char_grams(normalise(note)) for note, _ in pairs]
    for at, one in enumerate(grams):
        assert all(len(one & two) / len(one | two) < 0.8 for two in grams[at + 1 :])


def test_answers_repeat_the_facts_of_the_note(pairs):
    numbers = {"Two": 2, "Three": 3, "Four": 4, "Five": 5, "Six": 6, "Seven": 7}
    counted = 0
    for note, board in pairs:
        word = re.search(r"\b(?:Two|Three|Four|Five|Six|Seven)\b", board)
        found = re.search(r"(?<!\w)x?([2-7])(?!\w)", note)
        assert (word is None) == (found is None), (note, board)
        if word and found:
            counted += 1
            assert numbers[word.group()] == int(found.group(1))
    assert counted > 250


def test_the_metric_of_free_text_is_chosen(pairs):
    assert choose_task("auto", "intent", [board for _, board in pairs[:60]]).metric == "chrf"


def test_the_writer_says_when_the_phrases_are_used_up():
    writer = NoteWriter(Draw(7))
    writer.phrases = {
        **writer.phrases,
        "trails": ["mill track"],
        "states": writer.phrases["states"][3:4],
        "sightings": [{"note": "two hares", "board": "Two hares."}],
        "skies": writer.phrases["skies"][:1],
        "advice": writer.phrases["advice"][:1],
    }
    with pytest.raises(RuntimeError, match="no new note after"):
        [writer.row() for _ in range(40)]


def test_the_command_writes_it(tmp_path, capsys):
    out = tmp_path / "notes.jsonl"
    assert main(["data", "sample", "--kind", "free-text", "--out", str(out)]) == 0
    assert out.read_bytes() == b"".join(line + b"\n" for line in make_free_text(7))
    assert f"400 rows in {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "free-text", "--planted", "p"], "free-text has no planted faults"),
        ([], "name a file for the list of planted faults: --planted FILE"),
    ],
)
def test_planted_faults_belong_to_the_support_messages(tmp_path, capsys, arguments, message):
    command = ["data", "sample", "--out", str(tmp_path / "x.jsonl"), *arguments]
    assert main(command) == UserError.exit_code
    assert message in capsys.readouterr().err
