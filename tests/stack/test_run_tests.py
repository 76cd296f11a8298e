"""`make test T=path` runs tests in the environments that they need, and builds no other."""

import os
import shutil
from pathlib import Path

import pytest
from tests.lab.commands import call

ROOT = Path(__file__).parents[2]
AIRFLOW = ("dags", "plugins", "localpods", "stack", "cluster")
ML = ("serving", "data", "training", "evaluation", "governance", "deployment")
NOT_AIRFLOW = " ".join(f"--ignore=tests/{d}" for d in AIRFLOW)


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
        python.write_text(f'#!/bin/sh\necho {name} "$@"\nsh tests.sh {name} "$@"\n')
        python.chmod(0o755)
    for folder in (*ML, *AIRFLOW):
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
    assert lines(done) == [
        "setup --only ml",
        f"ml -m pytest -q -m not long {NOT_AIRFLOW} tests/data",
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


def test_without_a_path_every_test_runs_once_and_lint_and_types(run):
    done = run("all")
    assert lines(done)[-3:] == ["lint", "types", "all passed"]
    asked = sorted(line for line in lines(done) if " -m pytest " in line)
    assert asked == sorted(
        [
            "airflow -m pytest -q -m not long " + " ".join(f"tests/{d}" for d in AIRFLOW),
            *(f"ml -m pytest -q -m not long {NOT_AIRFLOW} tests/{folder}" for folder in ML),
            " ".join(
                [
                    f"ml -m pytest -q -m not long {NOT_AIRFLOW} tests",
                    *(f"--ignore=tests/{folder}" for folder in ML),
                ]
            ),
        ]
    )


# Counts the parts that run at the same time; each takes a while.
SIDE_BY_SIDE = """
touch "running-$$"; ls running-* | wc -l >> counts; sleep 0.3; rm "running-$$"
"""


def test_two_cores_run_two_parts_at_a_time_and_keep_their_output_apart(run, tmp_path):
    done = run("all", tests=SIDE_BY_SIDE)
    assert done.returncode == 0
    counts = [int(count) for count in (tmp_path / "counts").read_text().split()]
    assert len(counts) == len(ML) + 2
    assert max(counts) == 2
    assert all(f"({n} of 8 parts)" in done.stdout for n in range(1, 9))


ALONE = "[ -e running ] && echo together; touch running; sleep 0.2; rm running"


def test_one_core_runs_one_after_the_other(run):
    done = run("all", tests=ALONE, cores=1)
    assert [line.split()[0] for line in lines(done)[1:3]] == ["ml", "airflow"]
    assert "together" not in done.stdout


@pytest.mark.parametrize(("cores", "name"), [(1, "the ml environment"), (2, "governance")])
def test_a_part_that_fails_is_named_and_stops_nothing(run, cores, name):
    fault = 'case "$*" in *"tests/governance") exit 1 ;; *"tests") exit 1 ;; esac'
    done = run("all", tests=fault, cores=cores)
    assert done.returncode == 1
    assert lines(done)[-3:] == ["lint", "types", f"FAILED: tests of {name}"]


def test_the_long_tests_run_alone(run):
    assert lines(run("long", "tests/data"))[1].startswith("ml -m pytest -q -m long ")


def test_a_path_that_is_not_there_is_named(run):
    done = run("all", "tests/dat")
    assert done.returncode == 2
    assert done.stderr == "run_tests: there is no tests/dat\n"
