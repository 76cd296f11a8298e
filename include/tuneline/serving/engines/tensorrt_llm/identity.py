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
        max_input_tokens: longest prompt, in tokens.
        max_total_tokens: longest prompt with its answer, in tokens.
        max_num_tokens: tokens of all requests in one step.
        max_lora_rank: highest rank of adapters; 0 for an engine without adapters.
        world_size: number of GPUs that share the model.
    """

    max_batch_size: int
    max_input_tokens: int
    max_total_tokens: int
    max_num_tokens: int
    max_lora_rank: int
    world_size: int


def read_sizes(folder: Path) -> EngineSizes:
    """Read the sizes of the engine in a served folder.

    Raises:
        UserError: if its config.json is missing or is not that of an engine.
    """
    path = folder / ENGINE_FOLDER / "config.json"
    config = read_json(path)
    try:
        build, mapping = config["build_config"], config["pretrained_config"].get("mapping") or {}
        plugins, lora = build.get("plugin_config") or {}, build.get("lora_config") or {}
        return EngineSizes(
            int(build["max_batch_size"]),
            int(build["max_input_len"]),
            int(build["max_seq_len"]),
            int(build["max_num_tokens"]),
            int(lora.get("max_lora_rank") or 0) if plugins.get("lora_plugin") else 0,
            int(mapping.get("world_size") or mapping.get("tp_size") or 1),
        )
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
    """Write what a built engine is tied to beside it, read back from its own files.

    Args:
        facts: what its files do not state, as the hash of the model that it was built of.

    Returns:
        The content, without the hashes of the files.
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


def read_identity(folder: Path) -> dict[str, Any]:
    """Read the identity beside an engine.

    Raises:
        UserError: if there is none.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} has no {IDENTITY_FILE}, so nothing says which GPU and which TensorRT-LLM "
            "its engine was built for; build it again with build_engine"
        )
    return read_json(path)


def refuse_unservable(request: ServeRequest) -> None:
    """Refuse to start an engine on another machine, or for more, than it was built for.

    Raises:
        UserError: with what it was built for, what this pod has, and what to do.
    """
    identity, sizes = read_identity(request.model), read_sizes(request.model)
    reasons = chain(
        _other_versions(identity),
        _other_gpus(identity, sizes.world_size),
        _other_bytes(request.model, identity.get("files") or {}),
        _too_small(request, sizes),
    )
    for reason in reasons:
        raise UserError(reason)


def _other_versions(identity: Mapping[str, Any]) -> Iterator[str]:
    built = str(identity.get("version", "")).removeprefix("tensorrt_llm ")
    installed = installed_versions()
    have = installed["tensorrt_llm"]
    if built != have:
        yield (
            f"the engine was built by TensorRT-LLM {built}, this image has "
            f"{have or 'none'}: serve it in the image of {built}, or {_AGAIN}"
        )
    if identity.get("tensorrt") and identity["tensorrt"] != installed["tensorrt"]:
        yield (
            f"the engine was built by TensorRT {identity['tensorrt']}, this image has "
            f"{installed['tensorrt']}: serve it in the image that built it, or {_AGAIN}"
        )


def _other_gpus(identity: Mapping[str, Any], needed: int) -> Iterator[str]:
    built, here = (identity.get("gpus") or [{}])[0], query_gpus()
    wanted = f"SM {built.get('compute_cap')} ({built.get('name')})"
    if not here:
        yield f"the engine was built for {wanted}, this pod has no GPU: serve it on one"
    for gpu in here[:needed]:
        if gpu["compute_cap"] != built.get("compute_cap"):
            yield (
                f"the engine was built for {wanted}, this pod has {gpu['compute_cap']} "
                f"({gpu['name']}): serve it on the former, or {_AGAIN}"
            )
    if len(here) < needed:
        yield (
            f"the engine was built for {needed} GPUs, this pod has {len(here)}: give it more, or "
            f"{_AGAIN}"
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
    if request.context_tokens > sizes.max_total_tokens:
        yield (
            f"deployment.context_tokens is {request.context_tokens}, the engine was built for "
            f"{sizes.max_total_tokens} tokens (max_seq_len); lower it, or build the engine again"
        )
    if request.parallel > sizes.max_batch_size:
        yield (
            f"deployment.parallel is {request.parallel}, the engine was built for "
            f"{sizes.max_batch_size} requests at once (max_batch_size); lower it, or build the "
            "engine again"
        )
    for name, path in request.adapters.items():
        rank = int(read_json(path / "adapter_config.json")["r"])
        if not sizes.max_lora_rank:
            yield (
                f"the engine was built without adapters, so it can't serve {name}; it is compiled "
                "of the merged model"
            )
        if rank > sizes.max_lora_rank:
            yield (
                f"the adapter {name} has rank {rank}, the engine was built for "
                f"{sizes.max_lora_rank} (max_lora_rank); build it with a higher one"
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
