"""The ledger: whoever reads the hold-out is in it, each candidate is scored once; like rows."""

import ast
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_task import task_rows

import tuneline
from tuneline.asking import asking
from tuneline.asking.asking import Answer
from tuneline.asking.rows import dataset_rows
from tuneline.cli import main
from tuneline.data.near_duplicates import minhash
from tuneline.data.near_duplicates.shingles import char_grams, normalise
from tuneline.data.tables.rows import Row
from tuneline.evaluation import holdout_performance
from tuneline.evaluation.scoring import gate
from tuneline.evaluation.scoring.ledger import (
    holdout_sha256,
    independent_groups,
    near_duplicates,
    open_holdout,
    read_ledger,
    same_ids,
)
from tuneline.evidence import measure
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
    for asks in (holdout_performance, gate):
        monkeypatch.setattr(asks, "ask_kept", lambda *args: ([Answer("{}")] * 48, True))
    second = again.execute("holdout_performance")
    found = values(second)
    assert counted == []
    assert found["candidate_answers_recorded"] == 48
    assert found["rows_asked_again_otherwise"] == 0
    assert found["tuned_metric"] == values(first)["tuned_metric"]
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
    for asks in (holdout_performance, gate):
        monkeypatch.setattr(asks, "ask_kept", lambda *args: ([Answer("{}")] * 48, True))
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


def test_candidates_on_half_of_the_rows_count_until_one_is_released(lab):
    bench = lab()
    held = task_rows({"holdout": 40})
    bench.leave_dataset(held)
    # The last shares a quarter of the rows.
    shared = {"seed-1": held[:30], "seed-2": held[5:], "other": held[:10]}
    for number, (run_id, rows) in enumerate(shared.items()):
        open_holdout(night(bench, rows, run_id).context("determinism"), "score", f"{number}" * 64)
    opened = open_holdout(bench.context("determinism"), "score", "c" * 64)
    assert opened.candidates() == {"0" * 64, "1" * 64}
    assert opened.candidates(since=bench.run.store.uri_of("runs/seed-1")) == {"1" * 64}


def row(row_id, text, split):
    roles = ("system", "user", "assistant")
    turns = ("Long shared text. " * 9, text, "ok")
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    return Row(row_id, messages, "rows.jsonl", 1, split=split)


def test_near_duplicates_agree_with_sets():
    texts = [
        "my card was charged twice for one order",
        "My card was charged twice  for one order!",
        "where is my parcel",
        "my card was charged for one order twice",
    ]
    held = [row(f"h{i}", text, "holdout") for i, text in enumerate(texts)]
    seen = [row("t0", texts[0], "train"), row("v0", "how do I reset a password", "validation")]
    for threshold in (0.3, 0.6, 0.9):
        found = {leak.row_id: leak.similarity for leak in near_duplicates(held, seen, threshold)}
        normal = [normalise(row.messages[1]["content"]) for row in (*held, *seen)]
        sets = [char_grams(text) for text in normal]
        best = [max(len(a & b) / len(a | b) for b in sets[4:]) for a in sets[:4]]
        expected = {f"h{at}": round(s, 4) for at, s in enumerate(best) if s >= threshold}
        assert found == expected
    leaks = near_duplicates(held, seen, 0.8)
    found = {(leak.row_id, leak.other_id, leak.other_split) for leak in leaks}
    assert found == {("h0", "t0", "train"), ("h1", "t0", "train")}


def test_a_blind_minhash_does_not_blind_the_witness(monkeypatch):
    text = "my card was charged twice for one order"
    rows = [row("h", text, "holdout"), row("t", f"{text} please", "train")]
    monkeypatch.setattr(minhash, "candidates", lambda keys: np.empty((0, 2), dtype=np.int64))
    monkeypatch.setattr(minhash, "cross_candidates", lambda *_: np.empty((0, 2), dtype=np.int64))
    texts = [r.messages[1]["content"] for r in rows]
    assert minhash.near_pairs(texts, 0.8) == []
    assert minhash.cross_pairs(texts[:1], texts[1:], 0.8) == []
    assert [leak.row_id for leak in near_duplicates(rows[:1], rows[1:], 0.8)] == ["h"]


def test_what_counts_as_alike():
    words = [f"w{n}" for n in range(200)]
    long, turned = " ".join(words), " ".join(words[100:] + words[:100])
    # Long texts are compared by words; the system turn, which rows share, is not compared.
    leaks = near_duplicates([row("h", long, "holdout")], [row("t", turned, "train")], 0.8)
    assert [(leak.row_id, leak.other_id) for leak in leaks] == [("h", "t")]
    assert near_duplicates([row("h", "abc", "holdout")], [row("t", "xyz", "train")], 0.1) == []
    assert near_duplicates([], [row("t", "x", "train")], 0.8) == []
    # Ids are compared without the number of the part.
    held = [row("a#1", "x", "holdout"), row("b", "y", "holdout")]
    assert same_ids(held, [row("a#0", "z", "train")]) == ["a#1"]


def test_rows_that_ask_the_same_count_as_one(tmp_path):
    lab = Lab(tmp_path, {})
    text = "my card was charged twice for one order"
    rows = [
        row("a", text, "holdout"),
        row("b", f"{text.upper()} !", "holdout"),
        row("c#0", "where is my parcel", "holdout"),
        row("c#1", "how do I reset a password", "holdout"),
        row("d", "cancel it please", "holdout"),
        row("e", "I never ordered this", "holdout"),
    ]
    first, later = row("f", "hello there", "holdout"), row("g", "and the invoice?", "holdout")
    later.messages[1:1] = first.messages[1:]
    rows += [first, later]
    ctx = lab.context("holdout_performance")
    assert independent_groups(ctx, rows) == [0, 0, 2, 2, 4, 5, 6, 6]
    # Deduplication also knows what the text does not show.
    audit = tmp_path / "audit.parquet"
    pq.write_table(pa.table({"row_id": ["d", "e"], "conversation": [7, 7]}), audit)
    lab.leave("deduplication", {"audit.parquet": audit}, [measure("rows", 1, "rows", ">=", 1)])
    assert independent_groups(ctx, rows) == [0, 0, 2, 2, 4, 4, 6, 6]
