"""Find the model that an address names: bytes for an engine, or an endpoint that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneline.config import DeploymentConfig
from tuneline.errors import UserError
from tuneline.gguf.export import export_lora_gguf
from tuneline.harness.served_apart import hashed_adapter
from tuneline.harness.served_models import hashed, installed
from tuneline.harness.subjects import Served, Subject, endpoint_of
from tuneline.models import resolve

Log = Callable[[str], object]


@dataclass(frozen=True)
class Asked:
    """What the command line says of a model.

    Attributes:
        model: an endpoint, a GGUF file, a folder, or the address of a base model.
        adapter: an adapter beside it, as a folder of PEFT or a GGUF file.
        api_key_env: environment variable with the endpoint's key.
        deployment: the engine and its sizes.
    """

    model: str
    adapter: Path | None
    api_key_env: str | None
    deployment: DeploymentConfig


def subject_of(asked: Asked, scratch: Path, log: Log) -> Subject:
    """Return the model that an address names.

    Args:
        asked: the address and what goes with it.
        scratch: folder for an adapter that has to be converted.
        log: function that takes one line of progress.

    Raises:
        UserError: if the address, the adapter or the key is wrong, or the engine is not here.
    """
    if asked.model.startswith(("http://", "https://")):
        if asked.adapter:
            raise UserError("--adapter can't be sent to an endpoint; name its model id there")
        return endpoint_of(asked.model, asked.api_key_env, asked.deployment.parallel)
    path, engine = Path(asked.model), installed(asked.deployment.engine)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a GGUF file")
        if engine.form != "gguf":
            raise UserError(f"{engine.name} does not load GGUF files; give --engine llama_cpp")
        if asked.adapter and asked.adapter.is_dir():
            raise UserError(f"--adapter {asked.adapter}: beside a GGUF file give the adapter's too")
        model = hashed(engine.name, path)
        adapter = asked.adapter
    else:
        base = resolve(asked.model, log=log)
        model, adapter = engine.untuned(base, log), asked.adapter
        if adapter and adapter.is_dir() and engine.form == "gguf":
            adapter = scratch / "adapter.gguf"
            export_lora_gguf(asked.adapter or adapter, base.path, adapter)
    if adapter is not None:
        if not adapter.exists():
            raise UserError(f"--adapter {adapter} does not exist")
        model = model.beside(hashed_adapter(adapter))
    return Served(model, asked.deployment)
