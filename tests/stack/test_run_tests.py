"""`make test T=path` runs tests in the environments that they need, and builds no other."""

import os
import shutil
from pathlib import Path

import pytest
from tests.lab.commands import call

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
    for name in ("ml", "airflow", "vllm"):
        python = tmp_path / f".venv-{name}" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\necho {name} "$@"\nsh tests.sh {name}\n')
        python.chmod(0o755)
    for folder in ("data", "dags", "stack", "localpods", "plugins", "cluster"):
        (tmp_path / "tests" / folder).mkdir(parents=True)

    def start(*arguments, tests="", cores=2):
        (tmp_path / "tests.sh").write_text(tests)
        # What the script would install is there.
        for name in ("docker-compose", "kubectl", "nproc"):
            (tmp_path / name).write_text(f"#!/bin/sh\necho {cores}\n")
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return call("scripts/run_tests.sh", *arguments, cwd=tmp_path, PATH=path)

    return start


def lines(done):
    return [line for line in done.stdout.splitlines() if not line.startswith("===")]


def test_a_path_of_the_ml_environment_builds_that_one_alone(run):
    done = run("all", "tests/data/")
    assert done.returncode == 0, done.stderr
    airflow = ("dags", "plugins", "localpods", "stack", "cluster")
    ignored = " ".join(f"--ignore=tests/{d}" for d in airflow)
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


def test_vllm_has_an_environment_of_its_own(run):
    assert lines(run("vllm", "tests/vllm")) == [
        "setup --only vllm",
        "vllm -m pytest -q -m vllm tests/vllm",
    ]


def test_paths_of_both_environments_run_in_both(run):
    done = run("all", "tests/data", "tests/stack")
    assert lines(done)[0] == "setup"
    assert [line.split()[0] for line in lines(done)[1:]] == ["ml", "airflow", "all"]


def test_without_a_path_everything_runs_and_lint_and_types(run):
    done = run("all")
    assert lines(done)[-3:] == ["lint", "types", "all passed"]
    folders = "tests/dags tests/plugins tests/localpods tests/stack tests/cluster"
    assert f"airflow -m pytest -q -m not long {folders}" in done.stdout


# Begins only when the other environment has begun, or gives up.
MEET = """
touch began-$1
for _ in $(seq 100); do [ -e began-ml ] && [ -e began-airflow ] && break; sleep 0.05; done
[ -e began-ml ] && [ -e began-airflow ] && echo "$1 met the other"
"""


def test_two_cores_run_both_environments_side_by_side_and_keep_their_output_apart(run):
    done = run("all", tests=MEET)
    assert done.returncode == 0
    assert [line.split(" -m ")[0] for line in lines(done)[1:5]] == [
        "ml",
        "ml met the other",
        "airflow",
        "airflow met the other",
    ]


ALONE = "[ -e running ] && echo together; touch running; sleep 0.2; rm running"


def test_one_core_runs_one_after_the_other(run):
    done = run("all", tests=ALONE, cores=1)
    assert [line.split()[0] for line in lines(done)[1:3]] == ["ml", "airflow"]
    assert "together" not in done.stdout


@pytest.mark.parametrize("cores", [1, 2])
def test_an_environment_that_fails_is_named_and_stops_nothing(run, cores):
    done = run("all", tests='test "$1" = airflow', cores=cores)
    assert done.returncode == 1
    assert lines(done)[-3:] == ["lint", "types", "FAILED: tests of the ml environment"]


def test_the_long_tests_run_alone(run):
    assert lines(run("long", "tests/data"))[1].startswith("ml -m pytest -q -m long ")


def test_a_path_that_is_not_there_is_named(run):
    done = run("all", "tests/dat")
    assert done.returncode == 2
    assert done.stderr == "run_tests: there is no tests/dat\n"
