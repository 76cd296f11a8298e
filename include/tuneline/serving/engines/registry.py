"""Whether an engine knows an architecture: asked of the engine itself, else of a table."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from tuneline.serving.engines.base import Compatibility, ModelFacts

_TABLE = Path(__file__).with_name("architectures.json")

# How to list the architectures of an installed engine, by import name. Run in a child
# process: these imports take seconds, and some register signal handlers or GPU contexts.
_LIVE = {
    "vllm": (
        "vllm",
        "from vllm import ModelRegistry; print('\\n'.join(ModelRegistry.get_supported_archs()))",
    ),
    "sglang": (
        "sglang",
        "from sglang.srt.models.registry import ModelRegistry; "
        "print('\\n'.join(ModelRegistry.get_supported_archs()))",
    ),
    "tensorrt_llm": (
        "tensorrt_llm",
        "from tensorrt_llm.models import MODEL_MAP; print('\\n'.join(MODEL_MAP))",
    ),
}


@cache
def known_architectures(engine: str) -> tuple[frozenset[str], str, bool]:
    """Architectures that an engine knows.

    Returns:
        Their names, who says so, and whether that is the installed engine itself.
    """
    if engine in _LIVE:
        module, code = _LIVE[engine]
        if importlib.util.find_spec(module) is not None:
            listed = _ask(code)
            if listed:
                return listed, f"the model registry of the installed {module}", True
    table = json.loads(_TABLE.read_text(encoding="utf-8"))[engine]
    return frozenset(table["architectures"]), str(table["source"]), False


def check_architecture(engine: str, model: ModelFacts) -> Compatibility:
    """Look the model's architecture up."""
    known, source, live = known_architectures(engine)
    compatible = model.architecture in known
    if compatible:
        reason = f"{model.architecture} is among the architectures it knows"
    else:
        reason = f"{model.architecture} is not among the {len(known)} architectures it knows"
    return Compatibility(engine, compatible, reason, source, live)


def _ask(code: str) -> frozenset[str]:
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        return frozenset()
    if answer.returncode != 0:
        return frozenset()
    # Engines print notices as well; architecture names are single words.
    return frozenset(line for line in answer.stdout.split("\n") if line.isidentifier())
