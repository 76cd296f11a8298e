"""Answers are kept as they come: a killed process asks only what is missing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.lab.http_server import Handler, serving

from tuneline.asking.asking import (
    KEPT_SECONDS,
    Endpoint,
    KeptAnswers,
    collect,
    keys_of,
    request_key,
)
from tuneline.serving.client import EngineError

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(40)]
LIMITS = [8] * 20 + [16] * 20

# A process that asks the server of its first argument, until it is killed or done.
ASK = """
import sys
from pathlib import Path
from tests.asking.test_asking import LIMITS, PROMPTS
from tuneline.asking.asking import collect
from tuneline.asking.asking import KeptAnswers
from tuneline.asking.asking import Endpoint

with KeptAnswers(Path(sys.argv[2])) as kept:
    subject = Endpoint(sys.argv[1], "m", parallel=2)
    collect(subject, PROMPTS, LIMITS, kept)
"""


def server_of_echoes(asked, *, slow=0.0, broken_after=None):
    """A handler that speaks the protocol, says which question it was asked, and notes it."""

    class Echo(Handler):
        def do_POST(self):
            body = json.loads(self.body())
            text = body["messages"][-1]["content"]
            asked.append((text, body["max_tokens"]))
            if broken_after is not None and len(asked) > broken_after:
                return self.answer(b"gone", 500)
            time.sleep(slow)
            message = {"role": "assistant", "content": f"answer to {text}"}
            answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}
            return self.answer(json.dumps(answer).encode())

    return Echo


def ask(url, path, prompts=PROMPTS, limits=LIMITS, known=None):
    with KeptAnswers(path) as kept:
        subject = Endpoint(url, "m", parallel=2)
        return collect(subject, prompts, limits, kept, known=known)


def test_a_killed_process_asks_only_what_is_missing_when_it_is_run_again(tmp_path):
    asked, path = [], tmp_path / "answers.jsonl"
    with serving(server_of_echoes(asked, slow=0.05)) as url:
        process = subprocess.Popen([sys.executable, "-c", ASK, url, str(path)])
        while len(asked) < 12:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        time.sleep(0.2)
        before = len(asked)
        kept = len(KeptAnswers(path))
        answers, cached = ask(url, path)
    # Two were under way, and no more than those are lost.
    assert before - 2 <= kept <= before
    assert 0 < kept < len(PROMPTS)
    assert len(asked) == before + len(PROMPTS) - kept
    assert answers == [f"answer to question {number}" for number in range(40)]
    assert not cached
    assert {question for question, _ in asked} == {p[0]["content"] for p in PROMPTS}


def test_what_was_answered_is_not_asked_again_and_another_limit_is(tmp_path):
    asked, path = [], tmp_path / "answers.jsonl"
    with serving(server_of_echoes(asked)) as url:
        first, _ = ask(url, path)
        again, cached = ask(url, path)
        assert (again, cached, len(asked)) == (first, True, 40)
        ask(url, path, limits=[16] * 40)
        assert len(asked) == 60
        # The second half had that limit before.
        assert {limit for _, limit in asked[40:]} == {16}


def test_known_answers_are_taken_and_equal_requests_are_sent_once(tmp_path):
    asked = []
    with serving(server_of_echoes(asked)) as url:
        keys = keys_of(Endpoint(url, "m"), PROMPTS, LIMITS)
        known = {keys[3]: "from the ledger"}
        prompts, limits = [*PROMPTS[:5], PROMPTS[0]], [8] * 6
        answers, cached = ask(url, tmp_path / "a.jsonl", prompts, limits, known)
    assert answers[3] == "from the ledger"
    assert answers[0] == answers[5] == "answer to question 0"
    assert sorted(asked) == [(f"question {number}", 8) for number in (0, 1, 2, 4)]
    assert not cached


def test_a_server_that_fails_in_the_middle_leaves_what_it_answered(tmp_path):
    asked, path = [], tmp_path / "answers.jsonl"
    with (
        serving(server_of_echoes(asked, broken_after=15)) as url,
        pytest.raises(EngineError, match="500"),
    ):
        ask(url, path)
    assert len(KeptAnswers(path)) >= 13


def test_a_torn_last_line_is_dropped_and_the_next_answer_is_whole(tmp_path):
    path = tmp_path / "answers.jsonl"
    with KeptAnswers(path) as kept:
        kept.add("a", "first\nwith a line break")
        kept.add("loss", 2.5)
        kept.add("b", "second")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    with KeptAnswers(path) as kept:
        assert dict(kept) == {"a": "first\nwith a line break", "loss": 2.5}
        kept.add("c", "third \udcff")
    assert dict(KeptAnswers(path)) == {
        "a": "first\nwith a line break", "loss": 2.5, "c": "third \udcff",
    }  # fmt: skip


def test_several_writers_lose_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"

    def write(name):
        with KeptAnswers(path) as kept:
            for number in range(200):
                kept.add(f"{name}-{number}", name * 50)

    writers = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(KeptAnswers(path)) == 600


def test_a_file_of_the_cache_that_nobody_uses_any_more_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path))
    for name in ("old", "new"):
        with KeptAnswers.in_cache(name) as kept:
            kept.add("a", "b")
    folder, past = tmp_path / "answers", time.time() - KEPT_SECONDS - 60
    os.utime(folder / "old.jsonl", (past, past))
    # A folder of the user's is left alone.
    KeptAnswers(folder / "third.jsonl")
    assert len(list(folder.iterdir())) == 2
    KeptAnswers.in_cache("third")
    assert [path.name for path in folder.iterdir()] == ["new.jsonl"]


def test_a_key_names_everything_that_decides():
    base = request_key(["model", "engine 1"], PROMPTS[0], 8)
    assert base == request_key(["model", "engine 1"], [dict(PROMPTS[0][0])], 8)
    others = [
        request_key(["model", "engine 2"], PROMPTS[0], 8),
        request_key(["other", "engine 1"], PROMPTS[0], 8),
        request_key(["model", "engine 1"], PROMPTS[1], 8),
        request_key(["model", "engine 1"], PROMPTS[0], 9),
    ]
    assert len({base, *others}) == 5
