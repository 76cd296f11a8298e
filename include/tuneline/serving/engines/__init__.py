"""Inference engines behind one interface: `get_engine(name)` gives check and build.

The classes are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tuneline.errors import UserError

if TYPE_CHECKING:
    from tuneline.serving.engines.engine import Engine

# SGLang and TGI are rows of the compatibility table; no run can choose to ship them.
_CLASSES = {
    "llama_cpp": "llama_cpp.engine:LlamaCpp",
    "vllm": "vllm.engine:Vllm",
    "sglang": "engine:Engine",
    "tgi": "engine:Engine",
    "tensorrt_llm": "tensorrt_llm.engine:TensorRtLlm",
    "tensorrt_llm_pytorch": "tensorrt_llm.engine:TensorRtLlmPytorch",
}
ENGINE_NAMES = tuple(_CLASSES)


def get_engine(name: str) -> Engine:
    """Return the engine of a name, or raise UserError if there is no such engine."""
    if name not in _CLASSES:
        raise UserError(f"engine {name!r}: use one of {', '.join(ENGINE_NAMES)}")
    module, _, kind = _CLASSES[name].partition(":")
    engine: Engine = getattr(import_module(f"{__name__}.{module}"), kind)(name)
    return engine


def all_engines() -> list[Engine]:
    """Return every engine, in the order of `ENGINE_NAMES`."""
    return [get_engine(name) for name in ENGINE_NAMES]
