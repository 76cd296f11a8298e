"""The identity of a TensorRT engine: written beside it, and compared before it is served.

An engine's own files name neither the GPU nor the driver, and TensorRT refuses another compute
capability only when it loads the engine, which may be on a pod that has replaced a working one. So
`engine_identity.json` travels with the engine, and `refuse_unservable` reads it first.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import read_json
from tuneline.serving.engines.engine import machine_identity, query_gpus
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.engines.tensorrt_llm.build import ENGINE_FOLDER, PYTHON
from tuneline.store import sha256_file

IDENTITY_FILE = "engine_identity.json"
_AGAIN = "build it again here (run build_engine)"
# Asked of NVIDIA's Python, since ours has other packages.
_VERSIONS = """
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
try:
    import torch; cuda = torch.version.cuda
except ImportError:
    cuda = None
print(json.dumps({"tensorrt_llm": version("tensorrt_llm"), "tensorrt": version("tensorrt"),
                  "cuda": cuda}))
"""


@dataclass(frozen=True)
class EngineSizes:
    """The sizes that an engine was built for, from its own config.json.

    Attributes:
        max_total_tokens: longest prompt with its answer, in tokens.
        max_num_tokens: tokens of all requests in one step.
    """

    max_batch_size: int
    max_input_tokens: int
    max_total_tokens: int
    max_num_tokens: int


def read_sizes(folder: Path) -> EngineSizes:
    """Read the sizes of the engine in a served folder.

    Raises:
        UserError: if its config.json is missing or is not that of an engine.
    """
    path = folder / ENGINE_FOLDER / "config.json"
    config = read_json(path)
    try:
        names = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
        return EngineSizes(*(int(config["build_config"][name]) for name in names))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not that of an engine ({error}); build it again") from None


@cache
def installed_versions() -> dict[str, str | None]:
    """Return the versions of TensorRT-LLM, TensorRT and CUDA in NVIDIA's Python."""
    try:
        answer = subprocess.run(
            [PYTHON, "-c", _VERSIONS], capture_output=True, text=True, timeout=180, check=False
        )
        found: dict[str, str | None] = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return {"tensorrt_llm": None, "tensorrt": None, "cuda": None}
    return found


def write_identity(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write what a built engine is tied to next to it, read back from its own files.

    `facts` are what those do not state, as the hash of the model that it was built of. The content
    is returned without the hashes of the files.
    """
    config = read_json(folder / ENGINE_FOLDER / "config.json")
    pretrained = config.get("pretrained_config") or {}
    machine = machine_identity()
    installed = installed_versions()
    identity = {
        "engine": "tensorrt_llm",
        "version": f"tensorrt_llm {config.get('version')}",
        "tensorrt": installed["tensorrt"],
        "cuda": installed["cuda"],
        "driver": machine["gpus"][0]["driver_version"] if machine["gpus"] else None,
        **machine,
        **{name: pretrained.get(name) for name in ("dtype", "quantization", "mapping")},
        "limits": vars(read_sizes(folder)),
        **facts,
    }
    files = {name: sha256_file(path) for name, path in _files(folder).items()}
    (folder / IDENTITY_FILE).write_text(
        json.dumps({**identity, "files": files}, indent=1), encoding="utf-8"
    )
    return identity


def refuse_unservable(request: ServeRequest) -> None:
    """Refuse, with UserError, to start an engine elsewhere, or for more, than it was built for."""
    path = request.model / IDENTITY_FILE
    if not path.is_file():
        raise UserError(
            f"{request.model} has no {IDENTITY_FILE}, so nothing says which GPU and which "
            "TensorRT-LLM its engine was built for; build it again with build_engine"
        )
    identity, sizes = read_json(path), read_sizes(request.model)
    for reason in chain(
        _other_machine(identity),
        _other_bytes(request.model, identity.get("files") or {}),
        _too_small(request, sizes),
    ):
        raise UserError(reason)


def _other_machine(identity: Mapping[str, Any]) -> Iterator[str]:
    """Compare what an engine was built by and for with this image and this pod."""
    installed, gpus = installed_versions(), query_gpus()
    version = str(identity.get("version", "")).removeprefix("tensorrt_llm ")
    if version != installed["tensorrt_llm"]:
        yield (
            f"the engine was built by TensorRT-LLM {version}, this image has "
            f"{installed['tensorrt_llm'] or 'none'}: serve it in the image of {version}, or "
            f"{_AGAIN}"
        )
    if identity.get("tensorrt") not in (None, installed["tensorrt"]):
        yield (
            f"the engine was built by TensorRT {identity['tensorrt']}, this image has "
            f"{installed['tensorrt']}: serve it in the image that built it, or {_AGAIN}"
        )
    built = (identity.get("gpus") or [{}])[0]
    wanted = f"SM {built.get('compute_cap')} ({built.get('name')})"
    if not gpus:
        yield f"the engine was built for {wanted}, this pod has no GPU: serve it on one"
    elif gpus[0]["compute_cap"] != built.get("compute_cap"):
        yield (
            f"the engine was built for {wanted}, this pod has {gpus[0]['compute_cap']} "
            f"({gpus[0]['name']}): serve it on the former, or {_AGAIN}"
        )
    if identity.get("arch") not in (None, platform.machine()):
        yield (
            f"the engine was built on {identity['arch']}, this pod is {platform.machine()}: "
            f"{_AGAIN}"
        )


def _other_bytes(folder: Path, stated: Mapping[str, str]) -> Iterator[str]:
    found = {name: _remembered_sha256(path) for name, path in _files(folder).items()}
    other = sorted(n for n in {*found, *stated} if found.get(n) != stated.get(n))
    if other:
        yield (
            f"the engine's files differ from {IDENTITY_FILE} in {', '.join(other)}; fetch the "
            "release again, or run build_engine again"
        )


def _too_small(request: ServeRequest, sizes: EngineSizes) -> Iterator[str]:
    for asked, built, setting, name in (
        (request.context_tokens, sizes.max_total_tokens, "context_tokens", "max_seq_len"),
        (request.parallel, sizes.max_batch_size, "parallel", "max_batch_size"),
    ):
        if asked > built:
            yield (
                f"deployment.{setting} is {asked}, the engine was built for {built} ({name}); "
                "lower it, or build the engine again"
            )


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    found.pop(IDENTITY_FILE, None)
    return found


def _remembered_sha256(path: Path) -> str:
    """Return a file's hash; one that has not changed is read once in a process."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    return sha256_file(path)
