"""scripts/land.py, in a repository whose suite is a shell script of the commit that is tried."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lab.commands import call
from tests.lab.waiting import wait_for

SCRIPTS = Path(__file__).parents[2] / "scripts"
GREEN = "echo '[   1 s] 1/2 ok tests/test_a.py'; test ! -e stray; touch stray ../started"
WAITS = f"{GREEN}; while ! test -e ../go; do sleep 0.1; done"
ENDLESS = f"{GREEN}; (setsid sleep 4321 &); sleep 4321"
RED = """echo '[   2 s] 2/2 FAILED tests/test_b.py'
echo 'FAILED tests/test_b.py::test_x - assert 0'; exit 1"""


class Repository:
    """A repository with `main`, and `work` one commit ahead of it, whose suite is a script."""

    def __init__(self, folder, suite):
        self.folder = folder
        self.home = folder / ".tuneline"
        self.git("init", "--quiet", "--initial-branch=main")
        (folder / ".gitignore").write_text(".tuneline/\nstray\n")
        self.commit("main's", "exit 1")
        self.git("switch", "--quiet", "--create", "work")
        self.commit("work's", suite)

    def git(self, *words):
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
        return call("git", *identity, *words, cwd=self.folder, check=True).stdout.strip()

    def commit(self, text, suite):
        (self.folder / ".ci").mkdir(exist_ok=True)
        (self.folder / ".ci" / "run").write_text(f"{suite}\n")
        (self.folder / "file").write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", text)

    def land(self, *words):
        return call(sys.executable, SCRIPTS / "land.py", *words, cwd=self.folder)

    def start(self):
        command = [sys.executable, SCRIPTS / "land.py"]
        pipe = subprocess.PIPE
        land = subprocess.Popen(command, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)
        wait_for((self.home / "started").exists)
        return land

    @property
    def passed(self):
        file = self.folder / ".git" / "land-passed"
        return file.read_text().strip() if file.exists() else None


@pytest.fixture
def repository(tmp_path):
    return lambda suite: Repository(tmp_path, suite)


def test_a_green_commit_becomes_main_with_its_files(repository, tmp_path):
    made = repository(GREEN)
    tree = tmp_path.parent / f"{tmp_path.name}-main"
    made.git("worktree", "add", "--quiet", str(tree), "main")
    done = made.land()
    commit = made.git("rev-parse", "work")
    assert (done.returncode, made.git("rev-parse", "main"), made.passed) == (0, commit, commit)
    assert (tree / "file").read_text() == "work's"
    assert done.stdout.startswith(f"land: work at {commit[:12]}; log: {made.home}/land-")
    # What the first try left in the worktree is gone in the second.
    made.commit("more", GREEN)
    assert made.land().returncode == 0
    assert made.passed == made.git("rev-parse", "main") == made.git("rev-parse", "work")
    said = made.land()
    assert said.returncode == 1
    assert said.stderr == "land: work is not ahead of main; commit something on it first\n"


def test_a_red_commit_moves_nothing_and_its_tests_are_named_last(repository):
    made = repository(RED)
    before = made.git("rev-parse", "main")
    done = made.land()
    assert (done.returncode, made.git("rev-parse", "main"), made.passed) == (1, before, None)
    assert done.stdout.endswith("\nFAILED tests/test_b.py::test_x - assert 0\n")
    said = made.land("--status").stdout
    assert "work at" in said
    assert "failed with exit code 1" in said
    assert "2/2 of the queue done" in said
    assert said.endswith("\nFAILED tests/test_b.py::test_x - assert 0\n")


def test_what_is_not_committed_is_refused(repository):
    made = repository(GREEN)
    (made.folder / "forgotten").touch()
    done = made.land()
    assert done.returncode == 1
    assert "1 files in " in done.stderr
    assert "(forgotten); git commit or git stash them" in done.stderr


def test_what_does_not_stand_on_main_is_refused(repository):
    made = repository(GREEN)
    made.git("switch", "--quiet", "main")
    made.commit("main went on", GREEN)
    done = made.land("work")
    assert done.returncode == 1
    assert done.stderr == "land: work is not on top of main; run git rebase main work\n"
    assert made.land("none").stderr.startswith("land: there is no branch 'none'")


def test_ctrl_c_ends_all_that_was_started(repository):
    made = repository(ENDLESS)
    land = made.start()
    land.send_signal(signal.SIGINT)
    said, _ = land.communicate(timeout=60)
    assert land.returncode == 130
    assert "land: main stays at" in said
    assert made.passed is None
    assert "interrupted" in made.land("--status").stdout
    assert not [
        line for line in call("ps", "-eo", "args").stdout.splitlines() if line == "sleep 4321"
    ]


def test_one_at_a_time_and_a_main_that_moved_meanwhile_stays(repository):
    made = repository(WAITS)
    land = made.start()
    second = made.land()
    assert second.returncode == 1
    assert "being tried; began 0 min ago; 1/2 of the queue done" in second.stdout
    made.git("branch", "--force", "main", "work~0")
    moved = made.git("commit-tree", "-p", "main", "-m", "other", "main^{tree}")
    made.git("branch", "--force", "main", moved)
    (made.home / "go").touch()
    _, said = land.communicate(timeout=60)
    assert land.returncode == 1
    assert "passed, but main moved meanwhile" in said
    assert (made.git("rev-parse", "main"), made.passed) == (moved, None)
