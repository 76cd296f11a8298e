"""No import runs up and none in a circle; the page shows the floors that the contract names."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = ROOT / ".venv-dev" / "bin" / "lint-imports"
TREES = ("include", "benchmarks")


# A module, the line that is planted at its end, and how the linter names what it breaks.
PLANTS = (
    (
        "benchmarks.faults.guests.words",
        "from tuneline.errors import UserError",
        "benchmarks.faults.guests.words -> tuneline.errors (",
    ),
    ("tuneline.errors", "from tuneline.run import Run", "tuneline.errors -> tuneline.run ("),
    (
        "tuneline.store.base",
        "def late():\n    import tuneline.training.train",
        "tuneline.store.base -> tuneline.training.train (",
    ),
    (
        "tuneline.governance.promote",
        "import tuneline.evaluation.determinism",
        "tuneline.governance.promote -> tuneline.evaluation.determinism (",
    ),
    (
        "tuneline.store.base",
        "import tuneline.store.directory",
        "No cycles are allowed in tuneline.store.",
    ),
    ("tuneline.run", "import airflow", "tuneline is not allowed to import airflow"),
    ("tuneline.run", "import localpods", "tuneline.run -> localpods ("),
    ("localpods.state", "import tuneline.errors", "localpods.state -> tuneline.errors ("),
)


def floors():
    """The floors from the top, each a list of modules."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (named,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "floors")
    return [[m.strip() for m in layer.split("|")] for layer in named["layers"]]


def picture():
    """The floors as a Mermaid diagram."""
    names = [
        " · ".join(module.removeprefix("tuneline.") for module in modules) for modules in floors()
    ]
    boxes = [f'  f{number}["{name}"]' for number, name in enumerate(names)]
    arrows = " --> ".join(f"f{number}" for number in range(len(names)))
    return "\n".join(["```mermaid", "flowchart TB", *boxes, f"  {arrows}", "```"])


def test_every_planted_import_is_caught(tmp_path):
    """That the project itself keeps the contracts is for `make lint`, which the suite runs."""
    if not LINTER.exists():
        pytest.skip("import-linter is not installed; `make lint` builds .venv-dev")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for tree in TREES:
        shutil.copytree(ROOT / tree, tmp_path / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for module, line, _ in PLANTS:
        tree = "." if module.startswith("benchmarks.") else "include"
        path = tmp_path / tree / f"{module.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\n\n{line}\n")
    linter = [LINTER, "--no-logo", "--no-cache"]
    path = {"PYTHONPATH": "include:."}
    done = subprocess.run(
        linter, cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Contracts: 0 kept, 5 broken." in done.stdout
    for _, _, broken in PLANTS:
        assert broken in done.stdout, done.stdout


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
