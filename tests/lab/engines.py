"""A llama.cpp server of a GGUF file, started with few words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.engines.server import ServeRequest


def llama_server(
    model: Path, *, loras: Sequence[Path] = (), parallel: int = 1, ctx: int = 2048, **options: Any
) -> LlamaServer:
    """A server that has not been started.

    Args:
        model: the GGUF file; its stem is the name in the API unless `alias` is given.
        loras: GGUF adapters, named by their place.
        parallel: slots.
        ctx: context of a slot, in tokens.
        options: other fields of a `ServeRequest`.
    """
    adapters = {str(number): path for number, path in enumerate(loras)}
    alias = options.pop("alias", model.stem)
    return LlamaServer(ServeRequest(model, alias, parallel, ctx, adapters, **options))
