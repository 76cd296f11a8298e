"""The wheel holds the whole library, works without the checkout and states its commit."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.lab.commands import call

from tuneline.airflow import dags
from tuneline.environment import library_identity
from tuneline.errors import UserError

ROOT = Path(__file__).parents[1]
BUILDER = ROOT / ".venv-dev" / "bin" / "hatchling"
# Runs in the wheel alone, away from the checkout.
ASK = """
import json
from tuneline.config.policy import read_policy
from tuneline.config import build_config, models
from tuneline.environment import library_identity
build_config({"data": {"source": "x"}}, preset="laptop")
print(json.dumps([read_policy().where, [model.name for model in models()], library_identity()]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel."""
    if not BUILDER.exists():
        pytest.skip("hatchling is not installed; `make lint` builds .venv-dev")
    folder = tmp_path_factory.mktemp("wheel")
    commit = {**os.environ, "TUNELINE_IMAGE_COMMIT": "c" * 40}
    build = [BUILDER, "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, env=commit, check=True, capture_output=True)
    (path,) = folder.iterdir()
    zipfile.ZipFile(path).extractall(folder / "site")
    return folder / "site"


def test_it_holds_the_library_with_its_data_and_nothing_else(wheel):
    listed = call("git", "ls-files", "-co", "--exclude-standard", "include/tuneline", cwd=ROOT)
    there = {Path(name) for name in listed.stdout.split() if (ROOT / name).exists()}
    expected = {path.relative_to("include").as_posix() for path in there} | {"tuneline/COMMIT"}
    files = {p.relative_to(wheel).as_posix() for p in wheel.rglob("*") if p.is_file()}
    assert {name for name in files if ".dist-info/" not in name} == expected
    assert "tuneline/config/presets/laptop.yaml" in expected
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    extras = re.findall(r"^Provides-Extra: (\w+)", metadata.read_text(), re.MULTILINE)
    assert extras == ["airflow", "azure", "gcs", "ml", "spark"]


def test_it_works_without_the_checkout_and_is_the_same_code(wheel, tmp_path):
    done = call(sys.executable, "-c", ASK, cwd=tmp_path, check=True, PYTHONPATH=str(wheel))
    policy, models, identity = json.loads(done.stdout)
    assert Path(policy).is_relative_to(wheel)
    assert models == ["support-intents"]
    assert (identity["source"], identity["commit"], identity["dirty"]) == ("wheel", "c" * 40, False)
    assert identity["library_sha256"] == library_identity()["library_sha256"]


def test_the_page_shows_the_file_of_the_dag_folder():
    file = (ROOT / "dags" / "tuneline_dags.py").read_text().split('"""\n\n')[1]
    assert f"```python\n{file}```" in (ROOT / "docs" / "existing-airflow.md").read_text()


def test_an_older_airflow_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.2.2")
    with pytest.raises(UserError, match=r"^Tuneline needs Airflow ≥ 3\.3, this is 3\.2\.2"):
        dags()
