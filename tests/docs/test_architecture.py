"""No import runs up and none in a circle; the page shows the floors that the contract names."""

import shutil
import subprocess

import pytest
from tests.docs.floors import ROOT, floors, picture

LINTER = ROOT / ".venv-dev" / "bin" / "lint-imports"
TREES = ("include", "benchmarks", "dags", "plugins")


def lint(folder, *options):
    """Run the linter on a copy of the project; exit code and output."""
    if not LINTER.exists():
        pytest.skip("import-linter is not installed; `make lint` builds .venv-dev")
    done = subprocess.run(
        [LINTER, "--no-logo", "--no-cache", *options],
        cwd=folder,
        env={"PYTHONPATH": "include:.:dags:plugins"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for tree in TREES:
        shutil.copytree(ROOT / tree, tmp_path / tree, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def plant(copy, module, line):
    """Add a line to the end of a module."""
    path = copy / "include" / f"{module.replace('.', '/')}.py"
    path.write_text(f"{path.read_text()}\n\n{line}\n")


def test_every_contract_is_kept(copy):
    code, said = lint(copy)
    assert code == 0, said


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("tuneline.errors", "from tuneline.run import Run", "No import runs up"),
        (
            "tuneline.store.base",
            "def late():\n    import tuneline.training.train",
            "No import runs up",
        ),
        ("tuneline.governance.promote", "import tuneline.evaluation.determinism", "No import"),
        ("tuneline.store.base", "import tuneline.store.directory", "No circle"),
        ("tuneline.run", "import airflow", "The library does not know Airflow"),
        ("tuneline.run", "import localpods", "Tuneline and localpods do not know each other"),
        ("localpods.state", "import tuneline.errors", "Tuneline and localpods do not know"),
    ],
)
def test_a_planted_import_is_caught(copy, module, line, contract):
    plant(copy, module, line)
    code, said = lint(copy)
    assert code == 1
    broken = [row for row in said.splitlines() if " BROKEN" in row]
    assert any(row.startswith(contract) for row in broken), said


def test_every_package_has_a_floor():
    library = ROOT / "include" / "tuneline"
    there = {
        f"tuneline.{path.stem}"
        for path in library.iterdir()
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    named = {module for modules in floors() for module in modules}
    assert {module for module in named if module.startswith("tuneline.")} == there


def test_the_architecture_page_shows_these_floors():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert picture() in page, f"docs/architecture.md needs this picture:\n{picture()}"
