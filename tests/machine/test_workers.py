import os
from functools import partial

import pytest
from tests.lab.data_runs import chat, text

from tuneline.config import DataConfig
from tuneline.data.pii.replace.scrubber import make_scrubber
from tuneline.machine.workers import AHEAD, LEAST_ROWS, map_chunks, worker_count


def _square(offset, value):
    return value * value + offset, os.getpid()


def _make(offset):
    return partial(_square, offset)


def test_results_keep_the_order_of_the_chunks():
    here = [result for result, _ in map_chunks(partial(_make, 1), range(20), 1)]
    found = list(map_chunks(partial(_make, 1), range(20), 2))
    assert [result for result, _ in found] == here == [n * n + 1 for n in range(20)]
    assert os.getpid() not in {process for _, process in found}


def test_few_chunks_are_read_ahead():
    read = []

    def chunks():
        for number in range(40):
            read.append(number)
            yield number

    results = map_chunks(partial(_make, 1), chunks(), 2)
    assert next(results)[0] == 1
    assert len(read) <= 2 * AHEAD + 1
    assert len(list(results)) == 39


def test_few_rows_are_not_worth_processes():
    assert worker_count(LEAST_ROWS - 1) == 1
    assert worker_count(LEAST_ROWS) >= 1


@pytest.mark.parametrize(
    "model",
    # Three processes load the model.
    [pytest.param(False, id="patterns"), pytest.param(True, id="model")],
)
def test_the_number_of_workers_does_not_matter(monkeypatch, model):
    monkeypatch.setattr("tuneline.data.pii.replace.scrubber.CHUNK", 30)
    rows = [
        chat(f"{text(n)}, i am oksana number {n}, 4111 1111 1111 1111", f"Dear Anna {text(n, 3)}")
        if n % 3 == 0
        else chat(text(n), "Bitte warten Sie, wir haben das nicht für Sie und mich.")
        for n in range(100)
    ]
    keys = [str(n) for n in range(len(rows))]
    scrubber = make_scrubber(DataConfig(source="rows.jsonl", pii_ner=model))
    alone = scrubber.scrub(keys, rows, 1)
    assert scrubber.scrub(keys, rows, 2) == alone
    assert all(result.hits["CREDIT_CARD"] for result in alone[::3])
    assert alone[1].foreign == "de"
