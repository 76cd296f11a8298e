"""What tests of the Airflow environment have done in the ML environment."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ML_PYTHON = ROOT / ".venv-ml" / "bin" / "python"


def ml(*arguments: str) -> str:
    """Run Python with arguments; what it printed."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'include'}:{ROOT}", "OMP_WAIT_POLICY": "PASSIVE"}
    env.pop("AIRFLOW_HOME", None)
    done = subprocess.run(
        [str(ML_PYTHON), *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def planned_runs(folder: Path, *settings: dict[str, Any], micro_batch: int) -> list[str]:
    """Make runs of a tiny base whose plan is done."""
    given = [json.dumps(sections) for sections in settings]
    return ml("-m", "tests.lab.planned_runs", str(folder), str(micro_batch), *given).split()[
        -len(given) :
    ]
