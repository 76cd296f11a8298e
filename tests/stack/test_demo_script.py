"""The demo's exit code: the script gives it, make only names it."""

import shutil
import sys
from pathlib import Path

import pytest
from tests.lab.commands import call

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """The real Makefile and script over a set-up and a demo that only end with a code."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "scripts" / "demo.sh", tmp_path / "scripts")
    setup = "import os, sys; sys.exit(int(os.environ.get('SETUP_CODE', '0')))"
    (tmp_path / "scripts" / "setup.py").write_text(setup)
    python = tmp_path / ".venv-airflow" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\nexit $DEMO_CODE\n')
    python.chmod(0o755)

    def run(*command, **env):
        # A suite that make runs must not look like a make inside of it.
        apart = {"MAKEFLAGS": "", "MAKELEVEL": "0", "PYTHON": sys.executable}
        return call(*command, cwd=tmp_path, **apart, **env)

    return run


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130])
def test_the_script_ends_as_the_demo_did(checkout, code):
    done = checkout("scripts/demo.sh", "--data", "a b.jsonl", DEMO_CODE=str(code))
    assert done.returncode == code
    assert done.stdout == "-m tuneline.stack demo --data a b.jsonl\n"


def test_a_refused_set_up_ends_the_script(checkout):
    done = checkout("scripts/demo.sh", SETUP_CODE="2", DEMO_CODE="0")
    assert (done.returncode, done.stdout) == (2, "")


def test_make_names_the_code_that_it_cannot_give(checkout):
    done = checkout("make", "demo", "DATA=a b.jsonl", DEMO_CODE="1")
    assert done.returncode == 2
    ours, makes = done.stderr.splitlines()
    assert ours.startswith("demo: exit code 1 ")
    assert makes.endswith("Error 1")
    assert done.stdout == "-m tuneline.stack demo --data a b.jsonl --config \n"


def test_make_adds_nothing_to_an_interruption(checkout):
    assert "demo:" not in checkout("make", "demo", DEMO_CODE="130").stderr


def test_make_says_nothing_more_after_a_release(checkout):
    done = checkout("make", "demo", DEMO_CODE="0")
    assert (done.returncode, done.stderr) == (0, "")
