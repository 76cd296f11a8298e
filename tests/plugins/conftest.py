"""The plugin's folder on the path, as Airflow puts it there, and a throw-away home."""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="tuneline-test-airflow-"))
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
sys.path.insert(0, str(Path(__file__).parents[2] / "plugins"))
