"""A store that an earlier version wrote is read, or refused with a sentence.

`earlier_store.tar.xz` holds a release, the one before it, their run, and a day of requests, as
commit 180901b left them; `checklist.json` in it has the verdicts that it showed.
"""

import json
import tarfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tuneline.artifacts.request_log import days, read_day
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release.erase import Eraser, Subject
from tuneline.governance.release.prune import Pruning, Retention
from tuneline.run import Run
from tuneline.store import open_store
from tuneline.verdicts import checklist

MANIFEST = "models/model/test/manifest.json"


@pytest.fixture
def store(tmp_path):
    with tarfile.open(Path(__file__).with_name("earlier_store.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    return open_store((tmp_path / "store").as_uri())


def test_its_run_opens_and_shows_the_same_verdicts(store):
    recorded = json.loads((store.root / "checklist.json").read_text())["verdicts"]
    rows = checklist(Run.open(store.uri_of("runs/test")))
    assert {row.item: str(row.verdict) for row in rows} == recorded


def test_commands_read_its_releases(store, capsys):
    assert main(["verify", store.uri_of(MANIFEST)]) == 0
    assert main(["lineage", "model", "--store", store.uri]) == 0
    assert main(["diff", "model/before", "model", "--store", store.uri]) == 0
    assert main(["audit", "model", "--store", store.uri]) == 0
    assert main(["rollback", "model", "--store", store.uri, "--reason", "back"]) == 0
    assert main(["verify", store.uri_of(MANIFEST)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert read_day(store, "support", days(store, "support")[0]).num_rows == 2


def test_it_is_pruned_and_erased(store):
    rules = Retention(datetime.now(UTC) + timedelta(days=1), 1)
    assert {f.run: f.kind for f in Pruning(store, rules).fates()}["test"] != "unreleased"
    eraser = Eraser(store, Subject("+49 170 1234567"), "ada")
    assert sum(eraser.search().files.values()) == 1
    eraser.erase()
    assert read_day(store, "support", date(2026, 3, 4)).num_rows == 1
    assert main(["verify", store.uri_of(MANIFEST)]) == 0


def test_a_run_of_another_contract_is_refused_with_a_sentence(store):
    key = "runs/test/run.json"
    meta = json.loads(store.get_bytes(key))
    store.put_bytes(key, json.dumps(meta | {"contract": "0"}).encode())
    with pytest.raises(UserError, match="was made for contract 0, this image speaks"):
        Run.open(store.uri_of("runs/test"))
