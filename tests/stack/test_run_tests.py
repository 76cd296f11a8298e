"""`make test T=path` runs tests in the environments that they need, and builds no other."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """The real script over a set-up and environments that only print their arguments."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "run_tests.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.py").write_text("import sys\nprint('setup', *sys.argv[1:])\n")
    for name in ("lint", "types"):
        script = tmp_path / "scripts" / f"{name}.sh"
        script.write_text(f"#!/bin/sh\necho {name}\n")
        script.chmod(0o755)
    for name in ("ml", "airflow"):
        python = tmp_path / f".venv-{name}" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        python.chmod(0o755)
    for folder in ("data", "dags", "stack", "localpods", "plugins"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    # Found, so that the script does not install it.
    (tmp_path / "docker-compose").write_text("")
    (tmp_path / "docker-compose").chmod(0o755)

    def start(*arguments):
        return subprocess.run(
            ["scripts/run_tests.sh", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def lines(done):
    return [line for line in done.stdout.splitlines() if not line.startswith("===")]


def test_a_path_of_the_ml_environment_builds_that_one_alone(run):
    done = run("all", "tests/data/")
    assert done.returncode == 0, done.stderr
    ignored = " ".join(f"--ignore=tests/{d}" for d in ("dags", "plugins", "localpods", "stack"))
    assert lines(done) == [
        "setup --only ml",
        f"ml -m pytest -q -m not long {ignored} tests/data",
        "all passed",
    ]


def test_a_path_of_the_airflow_environment_builds_that_one_alone(run):
    done = run("fast", "tests/dags")
    assert lines(done) == [
        "setup --only airflow",
        "airflow -m pytest -q -m not stack and not slow and not long tests/dags",
        "all passed",
    ]


def test_paths_of_both_environments_run_in_both(run):
    done = run("all", "tests/data", "tests/stack")
    assert lines(done)[0] == "setup"
    assert [line.split()[0] for line in lines(done)[1:]] == ["ml", "airflow", "all"]


def test_without_a_path_everything_runs_and_lint_and_types(run):
    done = run("all")
    assert lines(done)[-3:] == ["lint", "types", "all passed"]
    folders = "tests/dags tests/plugins tests/localpods tests/stack"
    assert f"airflow -m pytest -q -m not long {folders}" in done.stdout


def test_the_long_tests_run_alone(run):
    assert lines(run("long", "tests/data"))[1].startswith("ml -m pytest -q -m long ")


def test_a_path_that_is_not_there_is_named(run):
    done = run("all", "tests/dat")
    assert done.returncode == 2
    assert done.stderr == "run_tests: there is no tests/dat\n"
