"""Files that steps and people leave: a damaged one is named, and the step to run again."""

import pytest
from pydantic import BaseModel
from tests.lab.runs import Lab

from tuneline.artifacts.artifact import Artifact, Document, Lines, RunDocument
from tuneline.errors import UserError
from tuneline.store import CorruptObject


class Entry(BaseModel):
    name: str
    size: int = 0


DOCUMENT = Document("train", "entry.json", Entry)
LINES = Lines("train", "entries.jsonl", Entry)
ANSWERS = RunDocument("evaluation/answers.json", Entry)
# A separator that JSON may hold unescaped and that is not the end of a line.
ODD = Entry(name="a\u2028ü", size=2)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def write(lab, work):
    def run(ctx):
        work(ctx)
        return ctx.record("written by a test")

    lab.execute("train", run)
    return lab.context("checkpointing")


def test_a_document_is_read_as_it_was_written(lab):
    ctx = write(lab, lambda ctx: DOCUMENT.write(ctx, ODD))
    assert DOCUMENT.read(ctx) == DOCUMENT.find(lab.run) == ODD
    assert "train/entry.json" in ctx.inputs


def test_lines_are_read_as_they_were_written(lab):
    ctx = write(lab, lambda ctx: LINES.write(ctx, [ODD, Entry(name="b")]))
    assert LINES.read(ctx) == [ODD, Entry(name="b")]
    assert lab.lines("train", "entries.jsonl")[1] == {"name": "b", "size": 0}


def test_what_is_not_there_is_none_or_named(lab):
    assert DOCUMENT.find(lab.run) is None
    assert ANSWERS.find(lab.run) is None
    with pytest.raises(UserError, match="train has not been run"):
        DOCUMENT.read(lab.context("checkpointing"))
    ctx = write(lab, lambda ctx: None)
    with pytest.raises(UserError, match=r"train left no artifact 'entry\.json'"):
        DOCUMENT.read(ctx)


def test_a_damaged_file_names_its_place_and_its_step(lab):
    lab.leave("train", {"entry.json": '{"size": 1}', "entries.jsonl": '{"name": "a"}\n{}\n'})
    ctx = lab.context("checkpointing")
    with pytest.raises(CorruptObject, match=r"entry\.json: name: .*; run train again"):
        DOCUMENT.read(ctx)
    with pytest.raises(CorruptObject, match=r"entries\.jsonl, line 2: name: .*; run train again"):
        LINES.read(ctx)


def test_a_file_of_people_is_the_users_error(lab):
    ANSWERS.put(lab.run, ODD)
    assert ANSWERS.find(lab.run) == ODD
    lab.run.store.put_bytes(ANSWERS.key(lab.run), b"{")
    with pytest.raises(UserError, match=r"evaluation/answers\.json: "):
        ANSWERS.find(lab.run)


def test_only_the_step_itself_writes_its_files(lab):
    with pytest.raises(AssertionError, match="written by train, not by checkpointing"):
        DOCUMENT.write(lab.context("checkpointing"), ODD)


def test_raw_text_lies_in_quarantine(lab):
    secret = Artifact("train", "quarantine/raw.txt")
    ctx = write(lab, lambda ctx: secret.path(ctx).write_text("raw"))
    assert secret.fetch(ctx).read_text() == "raw"
    assert secret.key(lab.run).endswith("/quarantine/train/raw.txt")
