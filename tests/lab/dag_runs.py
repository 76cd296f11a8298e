"""A whole run of a DAG by Airflow's own scheduler code, with its pods on a local server."""

import atexit
import json
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.lab.commands import call
from tests.lab.pods import INCLUDE


def _call(*command: str, **environment: str) -> str:
    done = call(*command, **environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@cache
def _empty_home() -> Path:
    """A home with an empty database, made once for all tests."""
    home = Path(tempfile.mkdtemp(prefix="tuneline-test-database-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    _call(str(Path(sys.executable).with_name("airflow")), "db", "migrate", AIRFLOW_HOME=str(home))
    return home


def run_dag(file: Path, home: Path, **environment: str) -> Any:
    """Run the file of a DAG, which runs it and prints a line of JSON; that line's content."""
    home.mkdir()
    # Its name depends on the mode. The configuration beside it names the home that it was made for.
    for database in _empty_home().glob("*.db"):
        shutil.copy(database, home)
    printed = _call(
        sys.executable,
        str(file),
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__DAGS_FOLDER=str(file.parent),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        **{"PYTHONPATH": f"{INCLUDE}:{INCLUDE.parent}", **environment},
    )
    return json.loads(printed.splitlines()[-1])
