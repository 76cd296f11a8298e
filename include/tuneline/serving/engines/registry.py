"""Architectures that an engine supports: listed by the installed engine, else by a table."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("architectures.json")

# Code that lists the architectures of an installed engine, by import name. It runs in a
# child process: these imports take seconds, and some register signal handlers or GPU contexts.
_LIVE = {
    "vllm": "from vllm import ModelRegistry; "
    "print('\\n'.join(ModelRegistry.get_supported_archs()))",
    "sglang": "from sglang.srt.models.registry import ModelRegistry; "
    "print('\\n'.join(ModelRegistry.get_supported_archs()))",
    "tensorrt_llm": "from tensorrt_llm.models import MODEL_MAP; print('\\n'.join(MODEL_MAP))",
}


@cache
def known_architectures(engine: str) -> tuple[frozenset[str], str, bool]:
    """List the architectures that an engine supports.

    Returns:
        Their names, the source, and whether that is the installed engine itself.
    """
    # An engine's package has its name.
    if engine in _LIVE and importlib.util.find_spec(engine) is not None:
        listed = _ask(_LIVE[engine])
        if listed:
            return listed, f"the model registry of the installed {engine}", True
    table = json.loads(_TABLE.read_text(encoding="utf-8"))[engine]
    return frozenset(table["architectures"]), str(table["source"]), False


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
