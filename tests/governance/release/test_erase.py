"""Erasure: where a person is found, what is deleted, what is left, and what verify says of it."""

import json
import shutil
from datetime import UTC, datetime
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.lab.dying_store import DyingStore, Killed
from tests.lab.logged import DAY, MODEL, logged, put
from tests.lab.releases import log_release
from tests.lab.runs import Lab, dataset_rows

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.governance import DatasetFile, Manifest
from tuneline.artifacts.releases import find_version
from tuneline.artifacts.request_log import read_day
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.production.curated_days import (
    CurationEvidence,
    StoredFile,
    open_day,
    publish,
)
from tuneline.governance.production.labels import read_labels
from tuneline.governance.release.erase import Eraser, Subject
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.verify import examine
from tuneline.store import open_store

ANN = "Ann-Marie Öhlund"


def table(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def leave_run(store, tmp_path):
    """A release whose third row was read with the name, and one that started from its weights."""
    source = tmp_path / "rows.jsonl"
    source.write_text("{}\n")
    lab = Lab(tmp_path, {"name": "model"}, "v1", store=store.uri)
    rows = [row | {"source_file": str(source)} for row in dataset_rows({"train": 4, "holdout": 2})]
    raw = [row | {"raw": "{}"} for row in rows]
    raw[2] = raw[2] | {"raw": json.dumps({"text": f"I am {ANN}"})}
    rows[3]["messages"][1]["content"] += " says ann marie öhlund."
    lab.leave(
        "schema_validation", {"quarantine/rows.parquet": table(tmp_path / "raw.parquet", raw)}
    )
    lab.leave_dataset(rows)
    said = "".join(json.dumps({"row_id": r["row_id"], "text": "x"}) + "\n" for r in rows)
    wrong = json.dumps({"rows": [{"row_id": "row-0001"}], "note": f"ask {ANN}"})
    lab.leave("holdout_performance", {"answers.jsonl": said, "wrong_rows.json": wrong})
    ref = lab.run.entry(DATASET.step).artifacts[0]
    file = DatasetFile(key=store.key_of(ref.uri), sha256=ref.sha256, bytes=ref.bytes, rows=6)
    stated = {"name": str(source), "sha256": sha256(b"{}\n").hexdigest(), "bytes": 3}
    kept = {"address": str(source), "own_holdout": False, "form": "messages", "records": 6}
    sources = {"sources": [{**stated, **kept}]}
    for version, more in (("v1", {}), ("v2", {"lora": {"started_from": {"version": "v1"}}})):
        manifest = Manifest(
            name="model",
            version=version,
            files=[],
            hyperparameters=more,
            dataset=sources if version == "v1" else {},
            dataset_file=file if version == "v1" else None,
        )
        digest = write_manifest(store, f"models/model/{version}", manifest)
        log_release(store, "model", version, digest)
    return source


def leave_requests(store, tmp_path):
    """A day of production with a name in one request, curated; a label on that request."""
    put(store, [logged(0, "hello"), logged(1, f"it is {ANN.upper()}")], tmp_path)
    folder = tmp_path / "day"
    folder.mkdir(exist_ok=True)
    ids = [f"req-{DAY:%d}-{n:06d}" for n in (0, 1)]
    raw = table(folder / "requests.parquet", [{"request_id": i, "answer": "yes"} for i in ids])
    stated = {"sha256": sha256(raw.read_bytes()).hexdigest(), "bytes": raw.stat().st_size}
    evidence = CurationEvidence(
        model=MODEL,
        day=str(DAY),
        verdict="pass",
        summary="kept",
        requests_in=2,
        rows_kept=2,
        files=[StoredFile(name=raw.name, rows=2, **stated)],
    )
    publish(store, MODEL, DAY, evidence, folder)
    lines = "".join(
        json.dumps(
            {
                **{"request_id": i, "day": str(DAY), "decision": "accept", "by": "ada"},
                **{"at": f"{datetime.now(UTC):%Y-%m-%d}T00:00:00Z", "answer_corrected": None},
                **{"messages": [], "answer": "yes", "stratum": "random"},
            }
        )
        + "\n"
        for i in ids
    ).encode()
    store.put_bytes(f"labels/{MODEL}/{sha256(lines).hexdigest()}.jsonl", lines)
    store.put_bytes(f"quarantine/answers/{MODEL}/a/answers.json", json.dumps([ANN]).encode())


@pytest.fixture
def store(any_store, tmp_path):
    any_store.source = leave_run(any_store, tmp_path)
    leave_requests(any_store, tmp_path)
    any_store.put_bytes("models/model/v1/README.md", f"Written with {ANN}".encode())
    any_store.put_bytes("runs/v1/evaluation/x/torn.json", b'{"text": "')
    any_store.put_bytes("runs/v1/evaluation/x/sheet.csv", f"row,{ANN}".encode())
    return any_store


def state(store):
    return {key: store.find(key).sha256 for key in store.keys("")}


def names(store):
    """Keys of tables and documents that name the subject."""
    subject, found = Subject(ANN), []
    for key in store.keys(""):
        raw = store.get_bytes(key)
        if key.endswith(".parquet"):
            raw = json.dumps(pq.read_table(pa.BufferReader(raw)).to_pylist(), default=str).encode()
        if subject.names(raw.decode(errors="replace").encode().decode("unicode_escape", "replace")):
            found.append(key)
    return found


def erase(store, text=ANN):
    eraser = Eraser(store, Subject(text), "ada")
    eraser.search()
    return eraser.erase()


RUN = "runs/v1"
EXPECTED = {
    f"{RUN}/quarantine/schema_validation/rows.parquet": 2,
    f"{RUN}/data/distribution_balancing/dataset.parquet": 2,
    f"{RUN}/evaluation/holdout_performance/answers.jsonl": 2,
    f"{RUN}/evaluation/holdout_performance/wrong_rows.json": 1,
    f"logs/{MODEL}/{DAY}/part-1.parquet": 1,
    f"quarantine/answers/{MODEL}/a/answers.json": 1,
}


def check_erased(store, tmp_path):
    """Every table is whole, without the rows; verify says what was done."""
    release = find_version(store, "model", "v1")
    path = release.fetch(release.artifact(DATASET.step, DATASET.name), tmp_path / "fetched")
    ids = pq.read_table(path)["row_id"].to_pylist()
    assert ids == ["row-0000", "row-0001", "row-0004", "row-0005"]
    assert read_day(store, MODEL, DAY)["request_id"].to_pylist() == [f"req-{DAY:%d}-000000"]
    day = open_day(store, MODEL, DAY)
    assert day.fetch(tmp_path / "day.parquet")
    assert pq.read_table(tmp_path / "day.parquet").num_rows == day.evidence.files[0].rows == 1
    labels = read_labels(store, MODEL)
    assert (list(labels.latest), labels.skipped) == ([f"req-{DAY:%d}-000000"], [])


def test_the_search_changes_nothing_and_names_the_subject_by_its_hash(store, capsys):
    before = state(store)
    assert main(["erase", ANN, "--store", store.uri]) == 0
    said = capsys.readouterr().out
    assert state(store) == before
    assert not Subject(ANN).names(said)
    assert main(["erase", ANN, "--store", store.uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found["files"].get(key) for key in EXPECTED} == EXPECTED
    assert len(found["files"]) == len(EXPECTED) + 2  # the curated day and the labels
    assert found["sources"] == [str(store.source)]
    assert found["trained"] == ["model/v1", "model/v2"]
    left = "\n".join(found["left"])
    assert "models/model/v1/README.md names the subject" in left
    assert "the weights of model/v2 were trained with rows about the subject" in left
    assert f"{store.source}: rows came from it" in left
    assert left.count("torn.json can't be read: Unterminated string") == 1
    assert "sheet.csv names the subject: delete it" in left


def test_an_erasure_leaves_whole_tables_and_verify_says_so(store, tmp_path):
    manifest = store.uri_of("models/model/v1/manifest.json")
    store.delete(["models/model/v1/README.md", "runs/v1/evaluation/x/sheet.csv"])
    assert examine(manifest).differences == []
    assert len(names(store)) > 2
    erase(store)
    assert names(store) == []
    check_erased(store, tmp_path)
    store.source.write_text("\n")
    found = examine(manifest)
    assert found.differences == []
    said = [note for note in found.unchecked if "ada erased 2 rows about a person" in note]
    assert [note.partition(",")[0].partition(":")[0] for note in said] == [
        "the dataset of v1",
        str(store.source),
    ]
    # Idempotent, and nothing of it is left to find.
    before = state(store)
    assert Eraser(store, Subject(ANN), "ada").search().files == {}
    assert state(store) == before
    # Whoever changes the table afterwards is found out.
    key = f"{RUN}/data/distribution_balancing/dataset.parquet"
    store.put_bytes(key, store.get_bytes(f"{RUN}/quarantine/schema_validation/rows.parquet"))
    assert "the dataset of v1" in examine(manifest).differences[0]


def test_a_changed_dataset_without_an_erasure_is_a_difference(store):
    store.delete(["models/model/v1/README.md"])
    key = f"{RUN}/data/distribution_balancing/dataset.parquet"
    store.put_bytes(key, b"other")
    (found,) = examine(store.uri_of("models/model/v1/manifest.json")).differences
    assert "the dataset of v1" in found


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_erasure_is_ended_by_the_next(tmp_path, moment):
    store, whole = open_store((tmp_path / "store").as_uri()), tmp_path / "whole"
    leave_run(store, tmp_path)
    leave_requests(store, tmp_path)
    shutil.copytree(store.root, whole)
    for number in range(1, 60):
        shutil.rmtree(store.root)
        shutil.copytree(whole, store.root)
        eraser = Eraser(DyingStore(store, number, moment, only_writes=True), Subject(ANN), "ada")
        eraser.search()
        try:
            eraser.erase()
            died = False
        except Killed:
            died = True
        erase(store)
        assert names(store) == []
        check_erased(store, tmp_path)
        assert examine(store.uri_of("models/model/v1/manifest.json")).differences == []
        if not died:
            break
    assert number > 10
    assert not died


@pytest.mark.parametrize(
    ("subject", "text", "named"),
    [
        ("jane.doe@example.com", "write to <Jane.Doe@Example.COM>!", True),
        ("jane.doe@example.com", "write to maryjane.doe@example.com", False),
        ("+49 170 1234567", "call 0170/123 45 67 now", True),
        ("0170 1234567", "call +49 (170) 1234567", True),
        ("0170 1234567", "order 99117012349", False),
        ("José Peña", "JOSE\u0301 PEN\u0303A called", True),
        ("Ann Lee", "Annlee and Ann Leeds", False),
        ("Ann Lee", '{"name": "Ann\\u0020Lee"}', True),
    ],
)
def test_forms_of_a_subject(subject, text, named):
    assert Subject(subject).within([text]) is named


def test_a_subject_that_names_nobody_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="fewer than 4"):
        Subject("Al!")
    assert main(["erase", " . ", "--store", tmp_path.as_uri()]) == 2
    assert "fewer than 4" in capsys.readouterr().err
