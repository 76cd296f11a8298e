"""Add to the wheel its extras and the commit that it is built from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

EXTRAS = {
    "airflow": "requirements.txt",
    **{name: f"requirements/{name}.txt" for name in ("ml", "gcs", "azure", "delta", "spark")},
}


# mypy runs without hatchling, which only builds need: the bases are `Any` to it.
class Extras(MetadataHookInterface):
    """Extras whose packages the requirements files list; an image may hold one file alone."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the extras."""
        files = {name: Path(self.root, file) for name, file in EXTRAS.items()}
        metadata["optional-dependencies"] = {
            name: [line for line in file.read_text().splitlines() if line[:1] not in ("", "#")]
            for name, file in files.items()
            if file.exists()
        }


class Commit(BuildHookInterface):
    """The file COMMIT of the installed package, which lineage reads; a checkout has its history."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file, unless no commit is known."""
        script = Path(self.root, "scripts", "commit.sh")
        commit = os.environ.get("TUNELINE_IMAGE_COMMIT", "")
        if not commit and script.exists():
            commit = subprocess.run([script], capture_output=True, text=True, check=True).stdout
        if commit and version != "editable":
            path = Path(self.directory, "COMMIT")
            path.parent.mkdir(exist_ok=True)
            path.write_text(commit.strip())
            build_data["force_include"][str(path)] = "tuneline/COMMIT"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave the wheel alone in its folder."""
        Path(self.directory, "COMMIT").unlink(missing_ok=True)
