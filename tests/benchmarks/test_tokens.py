import pytest
from benchmarks.contest.trial import conduct, read_lines
from benchmarks.workloads.input_rows import write_lines
from benchmarks.workloads.support_chat import make_conversations
from tests.lab.tiny_models import make_tokenizer

from benchmarks import tokens

TRIALS = [tokens.audit, tokens.count, tokens.raw]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    make_tokenizer("smollm", folder / "model")
    rows = make_conversations(150)
    texts, reference = tokens._reference(folder / "model", rows)
    return {
        "model": str(folder / "model"),
        "target": tokens.TARGET,
        "limit": tokens.LIMIT,
        "conversations": write_lines(folder / "rows.jsonl", rows),
        "texts": write_lines(folder / "texts.jsonl", texts),
        "reference": write_lines(folder / "reference.jsonl", reference),
    }


@pytest.mark.parametrize("trial", TRIALS)
def test_every_system_counts_what_the_slow_way_counts(job, trial):
    sample = conduct(trial(job))
    assert sample.items == 150
    assert sample.scores == {"equal_counts": 1.0}


def test_one_wrong_count_shows(job, tmp_path):
    reference = read_lines(job["reference"])
    reference[3] += 1
    wrong = {**job, "reference": write_lines(tmp_path / "reference.jsonl", reference)}
    assert conduct(tokens.raw(wrong)).scores["equal_counts"] == pytest.approx(149 / 150)


def test_conversations_are_the_same_for_a_seed():
    assert make_conversations(20) == make_conversations(20)
    assert len({row[1]["content"] for row in make_conversations(50)}) > 45
