"""A stand-in for NVIDIA's TensorRT-LLM image, for tests alone: its programs without its GPU.

The programs take and refuse the flags of the release (flags.json), read and write engine folders of
the release's form and answer over HTTP as trtllm-serve does. Weights are GGUF files and llama.cpp
computes, so answers, probabilities and losses of a quantisation are real, and speeds mean nothing.
What a program knows of "its" GPU and version comes from the environment.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
L4, H100 = ("NVIDIA L4", "8.9"), ("NVIDIA H100 80GB HBM3", "9.0")
_PROGRAMS = {"trtllm-build": "build", "trtllm-serve": "serve"}
_SCRIPTS = ("models/core/llama/convert_checkpoint.py", "quantization/quantize.py")


class TrtllmImage:
    """The image within a test: programs on PATH, scripts in the examples' folder."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._patch, self._root = patch, root
        self.bin, self._site = root / "bin", root / "site"
        examples = root / "examples"
        patch.setattr("tuneline.serving.engines.tensorrt_llm.build.EXAMPLES", examples)
        self.bin.mkdir(parents=True)
        here = f"PYTHONPATH={_ROOT}:{_ROOT / 'include'}"
        for name, module in _PROGRAMS.items():
            self.program(name, f'exec env {here} {sys.executable} -m {__name__}.{module} "$@"')
        self.program("python", f'exec env {here}:{self._site} {sys.executable} "$@"')
        self.program("nvidia-smi", (_HERE / "nvidia-smi.sh").read_text())
        for name in _SCRIPTS:
            path = examples / name
            path.parent.mkdir(parents=True)
            path.write_text(f"from {__name__}.weights import main\nmain()\n")
        patch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        self.gpu(*L4)
        self.version("1.2.1")

    def program(self, name: str, text: str) -> None:
        """Put a shell script on PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def gpu(self, name: str, sm: str) -> None:
        """Exchange the GPU."""
        for variable, value in (("GPU", name), ("SM", sm), ("GPUS", "1")):
            self._patch.setenv(f"TRTLLM_LAB_{variable}", value)

    def version(self, version: str) -> None:
        """Exchange the image for one of another version."""
        from tuneline.serving.engines.tensorrt_llm.identity import installed_versions

        self._patch.setenv("TRTLLM_LAB_VERSION", version)
        shutil.rmtree(self._site, ignore_errors=True)
        self._site.mkdir()
        (self._site / "tensorrt_llm").symlink_to(_HERE / "site" / "tensorrt_llm")
        for name, number in (("tensorrt_llm", version), ("tensorrt", "10.13.3.9")):
            folder = self._site / f"{name}-{number}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Name: {name}\nVersion: {number}\n")
        installed_versions.cache_clear()
