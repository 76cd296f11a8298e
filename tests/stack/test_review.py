"""`make review`: which run it opens, and what it says where there is none or no terminal."""

import json
import os
import sys
from pathlib import Path

import pytest
from tests.lab.commands import call
from tests.lab.runs import Lab

from tuneline.errors import UserError
from tuneline.stack.demo import last_run

ROOT = Path(__file__).parents[2]


def made(tmp_path, name, at, *, answered):
    run = Lab(tmp_path, {}, name).run
    document = {**run.meta, "created_at": at}
    run.store.put_bytes(run.key("run.json"), json.dumps(document).encode())
    if answered:
        run.store.put_bytes(run.step_key("holdout_performance", "evidence.json"), b"{}")
    return run


def test_the_last_run_with_answers_is_opened(tmp_path):
    made(tmp_path, "z-old", "2026-01-01T00:00:00Z", answered=True)
    wanted = made(tmp_path, "b", "2026-01-02T00:00:00Z", answered=True)
    made(tmp_path, "a-broke", "2026-01-03T00:00:00Z", answered=False)
    assert last_run(wanted.store.uri).uri == wanted.uri


def test_without_a_run_the_demo_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has answers to compare; `make demo` makes one"):
        last_run((tmp_path / "store").as_uri())


def test_without_a_terminal_it_is_one_sentence(tmp_path):
    done = call(
        sys.executable,
        "-m",
        "tuneline.stack",
        "review",
        PYTHONPATH=os.pathsep.join([str(ROOT / "include"), *sys.path]),
        TUNELINE_HOME=str(tmp_path),
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "tuneline: the review needs a terminal; write the pairs to a file"
    )
