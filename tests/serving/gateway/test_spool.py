import os
from datetime import date

import pytest

from tuneline.errors import RetryableError, UserError
from tuneline.serving.gateway.logs.spool import Spool, SpoolFull, Uploader
from tuneline.serving.gateway.metrics import Metrics
from tuneline.store import FileStore

DAY = date(2026, 11, 26)


def line(number: int) -> bytes:
    return b'{"request_id":"req-%d","time":"2026-11-26T00:00:00.000+00:00"}\n' % number


@pytest.fixture
def open_spool(tmp_path):
    opened = []

    def make(**fields) -> Spool:
        settings = {"limit_bytes": 10_000, "part_rows": 100, "part_seconds": 3600, **fields}
        opened.append(Spool(tmp_path / "spool", **settings))
        return opened[-1]

    return make


@pytest.fixture
def metrics():
    return Metrics()


def test_a_part_is_sealed_by_rows_by_age_and_at_the_end(open_spool):
    spool = open_spool(part_rows=2)
    spool.append("m", DAY, [line(1)])
    assert spool.sealed() == []
    spool.append("m", DAY, [line(2)])
    (full,) = spool.sealed()
    assert full.read_bytes() == line(1) + line(2)
    assert full.parts[-3:-1] == ("m", "2026-11-26")
    spool.append("m", DAY, [line(3)])
    spool.seal()
    assert spool.sealed() == [full]
    spool.close()
    assert len(spool.sealed()) == 2
    assert spool.size == 3 * len(line(1))


def test_models_and_days_have_parts_of_their_own(open_spool):
    spool = open_spool(part_seconds=1e-9)
    for model, day in (("a", DAY), ("b", DAY), ("a", date(2026, 11, 27))):
        spool.append(model, day, [line(1)])
    spool.seal()
    assert sorted(path.parts[-3:-1] for path in spool.sealed()) == [
        ("a", "2026-11-26"),
        ("a", "2026-11-27"),
        ("b", "2026-11-26"),
    ]


def test_the_limit_counts_what_an_earlier_gateway_left(open_spool):
    first = open_spool()
    first.append("m", DAY, [line(1)])
    first.close()
    second = open_spool(limit_bytes=2 * len(line(1)) + 5)
    second.append("m", DAY, [line(2)])
    with pytest.raises(SpoolFull):
        second.append("m", DAY, [line(3)])
    second.remove(second.sealed()[0])
    second.append("m", DAY, [line(3)])
    assert second.size == 2 * len(line(1))


def test_a_write_that_fails_half_way_leaves_nothing_of_it(open_spool, monkeypatch):
    spool = open_spool()
    spool.append("m", DAY, [line(1)])
    real = os.write

    def half_a_write_then_a_full_disk(file, data):
        if len(data) <= len(line(1)):
            raise OSError(28, "No space left on device")
        return real(file, data[: len(line(1)) + 3])

    monkeypatch.setattr(os, "write", half_a_write_then_a_full_disk)
    with pytest.raises(OSError, match="No space"):
        spool.append("m", DAY, [line(2), line(3)])
    monkeypatch.undo()
    spool.append("m", DAY, [line(4)])
    spool.close()
    assert spool.sealed()[0].read_bytes() == line(1) + line(4)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be used.*production_log\.spool"):
        Spool(tmp_path / "file" / "spool", limit_bytes=1, part_rows=1, part_seconds=1)


def test_an_upload_that_was_cut_off_is_repeated_under_its_name(open_spool, tmp_path, metrics):
    store = FileStore(tmp_path / "store")

    class Killed(Spool):
        def remove(self, path):
            raise KeyboardInterrupt

    first = Killed(tmp_path / "spool", limit_bytes=10_000, part_rows=2, part_seconds=1)
    first.append("m", DAY, [line(1), line(2)])
    with pytest.raises(KeyboardInterrupt):
        Uploader(first, store, metrics)._upload_sealed()
    (before,) = store.keys("logs")
    first.close()
    second = open_spool()
    uploader = Uploader(second, store, metrics)
    uploader.start()
    uploader.close(5)
    assert list(store.keys("logs")) == [before]
    assert second.size == 0
    assert [path.name for path in (tmp_path / "spool").rglob("*")] == [".lock"]


def test_a_torn_line_is_dropped_and_counted(open_spool, tmp_path, metrics):
    spool = open_spool()
    spool.append("m", DAY, [line(1), line(2)])
    spool.close()
    (path,) = spool.sealed()
    path.write_bytes(path.read_bytes() + line(3)[:20])
    (tmp_path / "spool" / "part.scratch").write_bytes(b"PAR1 half a file")
    store = FileStore(tmp_path / "store")
    again = open_spool()
    assert not (tmp_path / "spool" / "part.scratch").exists()
    Uploader(again, store, metrics)._upload_sealed()
    assert 'tuneline_gateway_production_log_dropped_total{reason="torn"} 1' in metrics.text()
    assert "tuneline_gateway_production_log_uploaded_rows_total 2" in metrics.text()


def test_the_wait_after_failures_grows_to_a_minute(open_spool, tmp_path, metrics, monkeypatch):
    spool = open_spool(part_rows=1)
    spool.append("m", DAY, [line(1)])

    class Down(FileStore):
        def put_file(self, key, path, *, once=False):
            raise RetryableError("down")

    uploader = Uploader(spool, Down(tmp_path / "store"), metrics)
    monkeypatch.setattr("tuneline.serving.gateway.logs.spool.time.monotonic", lambda: 0.0)
    waits = []
    for _ in range(8):
        uploader._upload_sealed()
        waits.append(uploader._not_before)
    for number, wait in enumerate(waits):
        assert min(60, 2**number) / 2 <= wait <= min(60, 2**number)
    assert "tuneline_gateway_production_log_upload_failures_total 8" in metrics.text()
    assert len(spool.sealed()) == 1
