"""scripts/run_tests.py, over environments that are this one and a suite of a few small files."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.lab.commands import call

ROOT = Path(__file__).parents[2]
# Programs that the script would install.
PROGRAMS = ("docker-compose", "kubectl", "initdb", "chromium", "sqlite3", "aws")


@pytest.fixture
def suite(tmp_path):
    """Write files of tests, then run the real scripts over them."""
    (tmp_path / "scripts").mkdir()
    for name in ("run_tests.py", "supervised.py", "forking_pytest.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.py").write_text("import sys\nprint('setup', *sys.argv[1:])\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['long:']\n")
    commands = {"scripts/lint.sh": "echo lint", "scripts/types.sh": "echo types"}
    commands |= {f"bin/{name}": "" for name in PROGRAMS}
    for environment in ("ml", "airflow"):
        # Without the names of what to import before the tests, which take long.
        python = f'[ "$2" = pytest ] || set -- "$1"; exec {sys.executable} "$@"'
        commands[f".venv-{environment}/bin/python"] = f"export ENVIRONMENT={environment}; {python}"
    for name, line in commands.items():
        script = tmp_path / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
    (tmp_path / ".tuneline").mkdir()

    def write(tests):
        for name, text in tests.items():
            file = tmp_path / "tests" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"import os, pytest, sys, time\n\ndef test_it():\n    {text}\n")
        return tmp_path

    return write


def run(folder, *arguments):
    path = f"{folder}/bin:{os.environ['PATH']}"
    return call(sys.executable, "scripts/run_tests.py", *arguments, cwd=folder, PATH=path)


IN_ITS_ENVIRONMENT = {
    "data/test_a.py": "assert os.environ['ENVIRONMENT'] == 'ml'; sys.seen = True",
    "stack/test_b.py": "assert os.environ['ENVIRONMENT'] == 'airflow'",
    "test_c.py": "assert not hasattr(sys, 'seen')",
}


def test_each_file_runs_once_in_its_environment_and_sees_nothing_of_others(suite):
    done = run(suite(IN_ITS_ENVIRONMENT), "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "=== 3 passed\n" in done.stdout
    assert all(f"/6 ok {name} " in done.stdout for name in ("lint", "types-ml", "tests/test_c.py"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("assert 'apples' == 'pears'", "AssertionError: assert 'apples' == 'pears'"),
        ("pytest.skip('no browser')", "skipped, which the whole suite may not: no browser"),
        ("os._exit(9)", "FAILED tests/test_d.py"),
    ],
)
def test_what_fails_or_does_not_run_is_named_and_stops_nothing(suite, text, said):
    done = run(suite({"test_d.py": text, "data/test_e.py": "pass"}), "all")
    assert done.returncode == 1
    assert said in done.stdout
    assert "1 passed" in done.stdout
    assert "=== summary\nFAILED: tests/test_d.py\n" in done.stdout


def test_what_a_test_leaves_running_is_named_and_ended(suite):
    sleep = (
        "__import__('subprocess').Popen(['sleep', '4322'], start_new_session=True, env={PASSED})"
    )
    tests = {"test_a.py": sleep.format(PASSED="None"), "test_b.py": sleep.format(PASSED="{}")}
    done = run(suite(tests), "all")
    assert done.returncode == 1
    assert "2 passed" in done.stdout
    assert re.search(r"^tests/test_a.py: process \d+: sleep 4322", done.stderr, re.MULTILINE)
    assert re.search(r"^unknown: process \d+: sleep 4322", done.stderr, re.MULTILINE)
    assert "sleep 4322" not in call("ps", "-eo", "args").stdout.splitlines()


def test_a_missing_program_is_a_failure(suite, monkeypatch):
    folder = suite({"test_f.py": "pass"})
    (folder / "bin" / "chromium").unlink()
    monkeypatch.setenv("PATH", str(folder / "bin"))
    done = run(folder, "all")
    assert done.returncode == 1
    assert "FAILED: tests that need chromium" in done.stdout
