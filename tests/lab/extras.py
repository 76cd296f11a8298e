"""Packages and emulators which no usual environment holds, and the tests that need them."""

import importlib.util
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".tuneline" / "test-extras"
AZURITE = "azurite@3.35.0"


@contextmanager
def packages(*names: str) -> Iterator[None]:
    """Have `names` (extras, or packages for tests alone) importable within the block."""
    folder = HOME / "-".join(names)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        # What this environment has already is not installed again.
        (site / "here.pth").write_text(next(path for path in sys.path if "site-packages" in path))
        listed = [ROOT / "requirements" / f"{name}.txt" for name in names]
        wanted = [
            word
            for name, file in zip(names, listed, strict=True)
            for word in (["-r", str(file)] if file.exists() else [name])
        ]
        exact = ["-c", str(ROOT / "requirements" / "ml.constraints.txt")]
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input"]
        subprocess.run([*pip, *wanted, *exact], check=True)
        (folder / "ready").touch()
    sys.path.append(str(site))
    try:
        yield
    finally:
        sys.path.remove(str(site))


def azurite() -> Path:
    """Return Microsoft's emulator of Azure Blob Storage, installed by npm."""
    program = HOME / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        npm = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix"]
        subprocess.run([*npm, str(HOME / "azurite"), AZURITE], check=True)
    return program


def need(items, folder, package, reason):
    """Mark the tests below a folder with its name, and skip them without a package."""
    missing = importlib.util.find_spec(package) is None
    for item in items:
        if folder in item.path.parents:
            item.add_marker(folder.name)
            if missing:
                item.add_marker(pytest.mark.skip(reason=reason))
