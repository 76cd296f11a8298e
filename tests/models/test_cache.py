"""The cache: whole entries only, one fetch for all who ask, damage seen."""

import multiprocessing
import time

import pytest
from tests.lab.waiting import wait_for

from tuneline.errors import RetryableError
from tuneline.models.cache import cache_root, cached_model


def quiet(_):
    pass


def fill(directory):
    (directory / "weights.safetensors").write_bytes(b"1" * 1000)
    (directory / "config.json").write_text("{}")


def get(root, filler=fill):
    return cached_model(root, "m", "key", filler, log=quiet)


def test_an_entry_is_filled_once(tmp_path):
    calls = []

    def counting(directory):
        calls.append(1)
        fill(directory)

    entry, files = get(tmp_path, counting)
    again, same = get(tmp_path, counting)
    assert (entry, files) == (again, same)
    assert set(files) == {"weights.safetensors", "config.json"}
    assert len(calls) == 1
    assert cached_model(tmp_path, "m", "other", counting, log=quiet)[0] != entry


def _slow(root, started, results):
    def filler(directory):
        (directory.parent.parent / f"fetch-{time.monotonic_ns()}").touch()
        time.sleep(0.5)
        fill(directory)

    started.wait()
    results.put(str(get(root, filler)[0]))


def test_two_processes_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    started, results = context.Event(), context.Queue()
    workers = [context.Process(target=_slow, args=(tmp_path, started, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    started.set()
    entries = {results.get(timeout=20) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(entries) == 1
    assert len(list(tmp_path.glob("fetch-*"))) == 1


def test_a_fetch_that_fails_leaves_nothing(tmp_path):
    def failing(directory):
        (directory / "half").write_text("half")
        raise ValueError("the network went away")

    with pytest.raises(ValueError, match="went away"):
        get(tmp_path, failing)
    assert list((tmp_path / "models").iterdir()) == []


def _killed(root):
    def hanging(directory):
        (directory / "half").write_text("half")
        time.sleep(60)

    get(root, hanging)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    worker.start()
    wait_for(lambda: list(tmp_path.glob("models/.m-*/half")), what="half a file")
    worker.kill()
    worker.join()
    entry, _ = get(tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [entry.name]


def test_a_full_disk_is_one_sentence(tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(RetryableError, match="No space left on device; free some disk space"):
        get(tmp_path, full)


def test_a_file_of_another_size_is_fetched_again(tmp_path):
    entry, files = get(tmp_path)
    (entry / "weights.safetensors").write_bytes(b"1")
    again, same = get(tmp_path)
    assert again == entry
    assert files == same
    assert (entry / "weights.safetensors").stat().st_size == 1000


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    assert cache_root(tmp_path / "other") == tmp_path / "other"
    monkeypatch.delenv("TUNELINE_CACHE")
    assert cache_root().parts[-2:] == (".cache", "tuneline")
