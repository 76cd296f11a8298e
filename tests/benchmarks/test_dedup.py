import json

import numpy as np
import pytest
from benchmarks.contest.contest import Options, bench_python, why_missing
from benchmarks.contest.trial import conduct, write_lines
from benchmarks.texts.dedup_trials import chars_of, pair_scores, plain, tuneline, words_of
from benchmarks.workloads.near_duplicates import make_corpus

from benchmarks import dedup
from tuneline.data.near_duplicates.shingles import char_grams, normalise, word_grams
from tuneline.errors import UserError


def test_without_the_peers_environment_there_is_a_reason_and_no_ratio(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_BENCH_PYTHON", str(tmp_path / "nowhere"))
    report = dedup.run(Options(tmp_path, lambda _: None, runs=1, rows=400))
    assert report.value("tuneline", "recall") >= 0.99
    assert report.value("tuneline", "precision") == 1.0
    assert report.value("datasketch", "recall") > 0.5
    assert report.ratios["docs_per_s_vs_datasketch_bulk"] > 0
    assert "docs_per_s_vs_rensa" not in report.ratios
    assert report.value("rensa", "docs_per_s") is None
    (missing,) = report.not_measured
    assert missing.ratios == ("docs_per_s_vs_rensa",)
    assert "make bench" in missing.reason
    assert report.workload["rows"] == 400
    assert report.workload["pairs"] > 10
    with pytest.raises(UserError, match="200,000 or fewer"):
        dedup.run(Options(tmp_path, lambda _: None, rows=200_001))


@pytest.mark.skipif(
    why_missing("rensa", bench_python()) is not None, reason="`make bench` installs the peers"
)
def test_rensa_runs_in_its_own_environment(tmp_path):
    report = dedup.run(Options(tmp_path, lambda _: None, runs=1, rows=300))
    assert report.value("rensa", "recall") > 0.9
    assert report.ratios["docs_per_s_vs_rensa"] > 0
    assert not report.not_measured


def test_pairs_that_a_kernel_misses_lower_its_recall(tmp_path, monkeypatch):
    texts = make_corpus(300)
    job = {
        "texts": write_lines(tmp_path / "texts.jsonl", texts),
        "truth": write_lines(tmp_path / "truth.jsonl", sorted(dedup.exact_pairs(texts))),
    }
    assert conduct(tuneline(job)).scores["recall"] == 1.0
    monkeypatch.setattr(
        "tuneline.data.near_duplicates.minhash.candidates",
        lambda keys: np.empty((0, 2), dtype=np.int64),
    )
    assert conduct(tuneline(job)).scores["recall"] == 0.0


def test_all_systems_compare_the_same_form_of_a_text_and_its_shingles():
    for text in [*make_corpus(20), "Don't_stop: Größe №5!", "  A  b ", "İstanbul"]:
        assert plain(text) == normalise(text)
    for text in [*map(plain, make_corpus(5)), "", "abc", "one two", "one two three four"]:
        assert set(chars_of(text)) == char_grams(text)
        assert set(words_of(text)) == word_grams(text)


def test_scores_count_what_is_missed_and_what_is_wrong():
    truth = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert pair_scores(truth, truth) == {"recall": 1.0, "precision": 1.0}
    assert pair_scores(truth[:3], truth) == {"recall": 0.75, "precision": 1.0}
    assert pair_scores([*truth, (0, 7)], truth) == {"recall": 1.0, "precision": 0.8}
    assert pair_scores([], truth) == {"recall": 0.0, "precision": 1.0}


def test_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_BENCH_PYTHON", str(tmp_path / "nowhere"))
    question = "How do I reset the password of my account when I have lost my phone too?"
    rows = [question, question.replace("too", "as well"), question.upper(), "Where is my parcel?"]
    source = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": row, "completion": "."}) + "\n" for row in rows]
    source.write_text("".join(lines))
    report = dedup.run(Options(tmp_path, lambda _: None, input=source, runs=1))
    assert report.workload["input"] == "rows.jsonl"
    assert report.workload["exact_duplicates"] == 1
    assert report.workload["pairs"] == 1
    assert report.value("tuneline", "recall") == 1.0
