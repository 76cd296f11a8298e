"""The review in a real terminal (a pty), and what it stores."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest
from tests.lab.commands import call
from tests.lab.reviews import for_model, key_of, leave_answers, prepared
from tests.lab.runs import Lab, value

from tuneline.errors import UserError
from tuneline.people import ballots, terminal

COMMAND = [sys.executable, "-m", "tuneline.cli", "review", "vote", "--run"]
WAIT = 60


class Session:
    """A command in a terminal of its own, keys to press, and what it shows."""

    def __init__(self, *command):
        self.terminal, inside = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        self.shown = ""

    def until(self, text):
        """Wait for a text; what was shown up to there, from the last wait on."""
        deadline = time.monotonic() + WAIT
        while text not in self.shown:
            assert time.monotonic() < deadline, f"waited for {text!r}, got {self.shown!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                self.shown += os.read(self.terminal, 65536).decode()
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def press(self, key):
        os.write(self.terminal, key.encode())

    def end(self):
        code = self.process.wait(WAIT)
        os.close(self.terminal)
        return code


@pytest.fixture
def session(bench):
    made = []

    def begin():
        made.append(Session(*COMMAND, bench.run.uri))
        return made[-1]

    yield begin
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture
def bench(tmp_path):
    # As in the demo: nobody asked for a review, so no pairs were drawn.
    made = Lab(tmp_path, {"evaluation": {"review_pairs": 6}})
    leave_answers(made)
    return made


def test_a_review_is_left_taken_up_and_judged(bench, session):
    first = session()
    screen = first.until("q: quit")
    assert "Pair 1 of 6" in screen
    assert "Question:" in screen
    key = {entry.pair: entry for entry in key_of(bench).pairs}
    first.press("z")
    assert "Pair 1 of 6" in first.until("q: quit")
    first.press("x")
    first.until("Pair 2 of 6")
    first.press("u")
    first.until("Pair 1 of 6")
    for number in (1, 2):
        first.press(for_model("tuned")(key[number]).lower())
        first.until(f"Pair {number + 1} of 6")
    first.press("q")
    first.until("2 of 6 pairs have a vote; the votes are kept")
    assert first.end() == 0
    assert bench.run.find_evidence("human_review") is None

    second = session()
    for number in (3, 4, 5, 6):
        second.until(f"Pair {number} of 6")
        second.press(for_model("tuned")(key[number]).lower())
    second.until("All 6 pairs have a vote")
    second.press("\n")
    second.until("preferred the tuned model on 6 of 6 pairs")
    assert second.end() == 0
    (ballot,) = ballots.ballots(bench.run)
    assert (ballot.reviewer, ballot.source) == (terminal.this_user(), "terminal")
    evidence = bench.run.find_evidence("human_review")
    assert (evidence.verdict, value(evidence, "sign_test_p")) == ("pass", 0.03125)


def test_without_a_terminal_it_says_what_to_do(bench):
    done = call(*COMMAND, bench.run.uri, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "tuneline: the review needs a terminal; write the pairs to a file with `tuneline review "
        "export` and read it back with `tuneline review import`"
    )


def played(run, keys):
    """Play keys; the screens, and how far the reviewer came."""
    screens, pressed = [], iter(keys)
    progress = terminal.review(run, "ann", lambda: next(pressed), screens.append)
    return screens, progress


def test_every_key_is_a_vote_at_once(tmp_path):
    bench = Lab(tmp_path, {"evaluation": {"review_pairs": 4}})
    prepared(bench)
    screens, progress = played(bench.run, "abtxuuxtq")
    assert (progress.voted, progress.done, len(screens)) == (4, True, 9)
    (ballot,) = ballots.ballots(bench.run)
    assert [mark.choice for mark in ballot.marks] == ["A", "B", "both bad", "tie"]
    screens, progress = played(bench.run, "uq")
    assert (progress.voted, progress.done) == (3, False)


def test_screens_are_blind_and_hold_no_control_characters(tmp_path):
    bench = Lab(tmp_path, {"evaluation": {"review_pairs": 4}})
    leave_answers(bench)
    answers = bench.artifact("holdout_performance", "answers.jsonl").read_text()
    lines = answers.replace("base prose", "\\u001b[2Jgone").replace("tuned ", "new ")
    bench.leave("holdout_performance", {"answers.jsonl": lines})
    bench.execute("prepare_review")
    screens, _ = played(bench.run, "q")
    (screen,) = screens
    assert screen.count("\x1b") == 2  # the two that clear it
    assert "�[2Jgone" in screen
    assert "row-" not in screen


def test_a_user_who_is_not_assigned_is_refused(tmp_path):
    run = Lab(tmp_path, {"evaluation": {"review": True, "reviewers": ["ann"]}}).run
    terminal.check_reviewer(run, "ann")
    with pytest.raises(UserError, match="mallory is not assigned to the review of"):
        terminal.check_reviewer(run, "mallory")


def test_the_name_is_the_machines_and_not_one_that_can_be_typed(monkeypatch):
    name = terminal.this_user()
    monkeypatch.setenv("LOGNAME", "somebody else")
    monkeypatch.setenv("USER", "somebody else")
    assert terminal.this_user() == name != "somebody else"
