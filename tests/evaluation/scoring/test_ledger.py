"""The ledger: whoever reads the hold-out is in it, each candidate is scored once."""

import ast
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_task import task_rows

import tuneline
from tuneline.asking import asking
from tuneline.asking.rows import dataset_rows
from tuneline.cli import main
from tuneline.evaluation.scoring import gate
from tuneline.evaluation.scoring.ledger import holdout_sha256, open_holdout, read_ledger
from tuneline.store import sha256_file

PACKAGE = Path(tuneline.__file__).parent
# Who may read hold-out rows past the ledger: the ledger itself, and `tuneline data show`, which
# shows a file to a person.
READERS = {"evaluation/scoring/ledger.py", "data/show/rows.py"}


class Died(Exception):
    """What kills a step in a test."""


def night(lab, rows, run_id, model=None, **overrides):
    """Another run in the same store, with a dataset of its own."""
    other = Lab(lab.root, {"base_model": lab.run.config.base_model, **overrides}, run_id)
    other.leave_dataset(rows)
    if model is not None:
        other.leave_shipped(model)
    return other


@pytest.fixture
def counted(monkeypatch):
    """Prompts that were really sent, by what the progress calls the model."""
    sent = []
    whole = asking.EngineClient.complete_batch

    def counting(self, batch, **options):
        sent.extend(batch)
        return whole(self, batch, **options)

    monkeypatch.setattr(asking.EngineClient, "complete_batch", counting)
    return sent


def test_the_ordinary_way_to_rows_has_none_of_the_holdout(lab):
    bench = lab()
    bench.leave_dataset(task_rows({"train": 20, "validation": 5, "holdout": 6}))
    ctx = bench.context("adapter_merging")
    assert {row.split for row in dataset_rows(ctx)} == {"train", "validation"}
    assert list(bench.run.store.keys("ledger")) == []
    opened = open_holdout(ctx, "review", "abc")
    assert {row.split for row in opened.held} == {"holdout"}
    [entry] = read_ledger(bench.run.store, opened.sha256)
    assert (entry.step, entry.purpose, entry.rows) == ("adapter_merging", "review", 6)


def test_no_other_code_reads_rows_of_the_holdout():
    """Every call of `read_dataset(…, holdout=True)` in the package is one of the known."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "read_dataset" in text else ():
            called = getattr(node, "func", None)
            named = getattr(called, "id", getattr(called, "attr", "")) == "read_dataset"
            if named and any(keyword.arg == "holdout" for keyword in node.keywords):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == READERS


def test_the_same_bytes_are_scored_once(scored_lab, counted, monkeypatch, tmp_path):
    bench = scored_lab()
    first = bench.execute("holdout_performance")
    assert counted
    counted.clear()
    # Another run on another machine: nothing but the store is common.
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "another-machine"))
    shipped = bench.artifact("production_quantization", "model.gguf")
    again = night(bench, task_rows(SPLITS), "again", shipped)
    for asks in (asking, gate):
        monkeypatch.setattr(asks, "ask_kept", lambda *args: (["{}"] * 48, True))
    second = again.execute("holdout_performance")
    found = values(second)
    assert counted == []
    assert found["candidate_answers_recorded"] == 48
    assert found["rows_asked_again_otherwise"] == 0
    assert found["tuned_metric"] == values(first)["tuned_metric"]
    assert found["earlier_scorings_of_these_bytes"] == 1
    ledger = read_ledger(bench.run.store, holdout_sha256(bench.held_out()))
    assert [entry.repeat for entry in ledger] == [False, True]
    assert [entry.run for entry in ledger] == [bench.run.uri, again.run.uri]
    assert {(e.purpose, e.candidate_sha256, e.rows) for e in ledger} == {
        ("score", sha256_file(shipped), 48)
    }
    taken = [ref.name for ref in second.inputs if ref.name.startswith("recorded/")]
    assert taken == ["recorded/test/answers.parquet"]


def test_a_step_that_died_while_it_asked_goes_on_where_it_was(scored_lab, monkeypatch):
    bench = scored_lab()
    sent, whole = [], asking.EngineClient.chat

    def dying(self, messages, **options):
        sent.append(messages)
        if len(sent) == 21:
            raise Died
        return whole(self, messages, **options)

    monkeypatch.setattr(asking.EngineClient, "chat", dying)
    with pytest.raises(Died):
        bench.execute("holdout_performance")
    before = len(sent)
    for asks in (asking, gate):
        monkeypatch.setattr(asks, "ask_kept", lambda *args: (["{}"] * 48, True))
    evidence = bench.execute("holdout_performance")
    # Those that were under way with the 21st, or began before it was seen, are lost.
    assert 48 <= len(sent) <= 48 + 8
    assert len(sent) - before < 48 - 12
    found = values(evidence)
    assert evidence.verdict == "pass", broken(evidence)
    assert (found["candidate_answers_recorded"], found["rows_asked_again_otherwise"]) == (0, 0)
    [first, second] = read_ledger(bench.run.store, holdout_sha256(bench.held_out()))
    assert (first.repeat, second.repeat) == (False, True)


def test_the_same_bytes_asked_otherwise_are_another_look(scored_lab):
    bench = scored_lab()
    bench.execute("holdout_performance")
    settings = {"max_new_tokens": 40, "slices": {"worse_by": 1.0}}
    shipped = bench.artifact("production_quantization", "model.gguf")
    other = night(bench, task_rows(SPLITS), "again", shipped, evaluation=settings)
    evidence = other.execute("holdout_performance")
    assert (evidence.verdict, broken(evidence)) == ("warn", {"rows_asked_again_otherwise"})


def test_a_tampered_record_is_not_taken(scored_lab):
    bench = scored_lab()
    bench.execute("holdout_performance")
    path = bench.artifact("holdout_performance", "answers.parquet")
    table = pq.read_table(path)
    lines = [{**line, "tuned": line["expected"]} for line in table.to_pylist()]
    forged = type(table).from_pylist(lines, schema=table.schema)
    pq.write_table(forged, path)
    evidence = bench.execute("holdout_performance")
    assert values(evidence)["candidate_answers_recorded"] == 0
    assert values(evidence)["tuned_metric"] < 1


def test_a_choice_is_recorded_by_hand_and_fails_the_item(scored_lab, capsys):
    bench = scored_lab()
    uri = bench.run.uri
    assert main(["holdout", "list", "--run", uri]) == 0
    assert "no access is recorded" in capsys.readouterr().out
    note = ["--note", "prompt v3 won on these rows"]
    assert main(["holdout", "record", "--run", uri, "--purpose", "choose", *note]) == 0
    assert "recorded: choose, after 0 earlier accesses" in capsys.readouterr().out
    assert main(["holdout", "list", "--run", uri, "--json"]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["note"] == "prompt v3 won on these rows"
    assert entry["by"]
    evidence = bench.execute("holdout_performance")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"accesses_that_chose_something"}


def test_a_holdout_with_rows_of_one_that_was_chosen_on_inherits_the_fault(scored_lab):
    bench = scored_lab()
    fresh = [row for row in task_rows({"train": 60, "holdout": 30}) if row["split"] == "holdout"]
    shared = [row for row in task_rows(SPLITS) if row["split"] == "holdout"][:4]
    for number, row in enumerate(shared):
        text = row["messages"][1]["content"].upper()
        fresh[number]["messages"][1]["content"] = f"{text} !"
    earlier = night(bench, [*task_rows({"train": 10}), *fresh], "night-1")
    open_holdout(earlier.context("determinism"), "choose", "")
    evidence = bench.execute("holdout_performance")
    found = values(evidence)
    assert evidence.verdict == "fail"
    assert "accesses_that_chose_on_shared_rows" in broken(evidence)
    assert found["accesses_that_chose_something"] == 0
    document = bench.document("holdout_performance", "ledger.json")
    assert len(document["shared"][0]["rows"]) == 4
    assert document["earlier_on_shared_rows"][0]["purpose"] == "choose"


def test_a_look_at_an_overlapping_holdout_that_chose_nothing_leaves_it_clean(lab):
    bench = lab()
    held = task_rows({"holdout": 40})
    bench.leave_dataset(held)
    other = task_rows({"train": 40, "holdout": 20})
    for purpose, rows in (("score", held[:30]), ("choose", other)):
        open_holdout(night(bench, rows, purpose).context("determinism"), purpose, "a" * 64)
    opened = open_holdout(bench.context("determinism"), "score", "c" * 64)
    assert (opened.earlier, opened.inherited) == ([], [])
