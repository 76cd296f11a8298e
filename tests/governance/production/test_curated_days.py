"""A day in the store is the old one or the new one, whatever is killed or runs beside it."""

import hashlib
import threading

import pytest
from tests.lab.logged import DAY, MODEL

from tuneline.evidence import Verdict
from tuneline.governance.production.curated_days import (
    REQUESTS,
    CurationEvidence,
    StoredFile,
    curated_days,
    open_day,
    publish,
)
from tuneline.store.directory import FileStore


class Killed(BaseException):
    """Ends a run where a kill would."""


def content(folder, word):
    """A day's files and evidence; `word` decides all bytes."""
    folder.mkdir(exist_ok=True)
    raw = f"{REQUESTS} {word}".encode() * 50
    (folder / REQUESTS).write_bytes(raw)
    digest = hashlib.sha256(raw).hexdigest()
    stated = {"name": REQUESTS, "sha256": digest, "bytes": len(raw), "rows": 1}
    day = {"model": MODEL, "day": str(DAY), "verdict": Verdict.PASS, "summary": word}
    return CurationEvidence(**day, requests_in=1, rows_kept=1, files=[StoredFile(**stated)])


def put_day(store, folder, word):
    return publish(store, MODEL, DAY, content(folder / word, word), folder / word)


def check_whole(store, tmp_path):
    """The day in force, every file verified."""
    day = open_day(store, MODEL, DAY)
    assert day.fetch(tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes().endswith(day.evidence.summary.encode())
    return day


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_between_files_leaves_the_old_day_or_the_new_one(
    any_store, tmp_path, monkeypatch, writes
):
    put_day(any_store, tmp_path, "old")
    # What every write of either store passes through.
    method = "_put" if isinstance(any_store, FileStore) else "put_file"
    put = getattr(type(any_store), method)
    done = []

    def dying(self, key, *args, **options):
        if len(done) == writes:
            raise Killed
        done.append(key)
        return put(self, key, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(any_store), method, dying)
        if writes < 3:
            with pytest.raises(Killed):
                put_day(any_store, tmp_path, "new")
        else:
            put_day(any_store, tmp_path, "new")
    assert check_whole(any_store, tmp_path).evidence.summary == ("new" if writes == 3 else "old")
    put_day(any_store, tmp_path, "new")
    assert check_whole(any_store, tmp_path).evidence.summary == "new"


def test_only_the_day_before_is_left_beside_the_one_in_force(any_store, tmp_path):
    words = ("one", "two", "one", "three", "four")
    *_, before, day = [put_day(any_store, tmp_path, word) for word in words]
    # Whoever began to read before the switch can finish.
    assert before.fetch(tmp_path / "fetched")
    folders = {key.split("/")[3] for key in any_store.keys("curated") if key.count("/") == 4}
    assert len(folders) == 2
    assert day.prefix.rpartition("/")[2] in folders
    assert curated_days(any_store, MODEL) == [DAY]
    assert curated_days(any_store, f"{MODEL}/2") == []


def test_runs_at_the_same_time_leave_one_whole_day(store, tmp_path):
    words = [f"word{n}" for n in range(6)] * 2
    start = threading.Barrier(len(words))
    errors = []

    def run(number, word):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        evidence = content(folder, word)
        start.wait()
        try:
            for _ in range(3):
                publish(store, MODEL, DAY, evidence, folder)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(words)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check_whole(store, tmp_path)


def test_a_file_that_was_deleted_is_put_back(store, tmp_path):
    day = put_day(store, tmp_path, "one")
    (store.root / day.prefix / REQUESTS).unlink()
    put_day(store, tmp_path, "one")
    check_whole(store, tmp_path)
