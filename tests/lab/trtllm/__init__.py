"""A stand-in for NVIDIA's TensorRT-LLM image, for tests alone: its programs without its GPU.

The programs take and refuse the flags of the release (flags.json), read and write engine folders of
the release's form and answer over HTTP as trtllm-serve does. Weights are GGUF files and llama.cpp
computes, so answers, probabilities and losses of a quantisation are real, and speeds mean nothing.
What a program knows of "its" GPU and version comes from the environment.
"""

import shutil
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
L4, H100 = ("NVIDIA L4", "8.9"), ("NVIDIA H100 80GB HBM3", "9.0")
_PROGRAMS = {"trtllm-build": "build", "trtllm-serve": "serve"}
_SCRIPTS = {
    "models/core/llama/convert_checkpoint.py": "convert",
    "models/core/qwen/convert_checkpoint.py": "convert",
    "quantization/quantize.py": "quantize",
}


class TrtllmImage:
    """The image within a test: programs on PATH, scripts in the examples' folder.

    Attributes:
        bin: folder that comes first on PATH.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        from tuneline.serving.engines.tensorrt_llm import build as commands

        self._patch, self._root = patch, root
        self.bin, self._site = root / "bin", root / "site"
        examples = root / "examples"
        patch.setattr(commands, "EXAMPLES", examples)
        self.bin.mkdir(parents=True)
        here = f"PYTHONPATH={_ROOT}:{_ROOT / 'include'}"
        for name, module in _PROGRAMS.items():
            self.program(name, f'exec env {here} {sys.executable} -m {__name__}.{module} "$@"')
        self.program("python", f'exec env {here}:{self._site} {sys.executable} "$@"')
        self.program("nvidia-smi", (_HERE / "nvidia-smi.sh").read_text())
        for name, module in _SCRIPTS.items():
            path = examples / name
            path.parent.mkdir(parents=True)
            path.write_text(
                f"import runpy; runpy.run_module('{__name__}.{module}', None, '__main__')"
            )
        import os

        patch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        self.gpu(*L4)
        self.version("1.2.1")

    def program(self, name: str, text: str) -> None:
        """Put a shell script on PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def gpu(self, name: str, sm: str, count: int = 1) -> None:
        """Exchange the GPUs."""
        self._patch.setenv("TRTLLM_LAB_GPU", name)
        self._patch.setenv("TRTLLM_LAB_SM", sm)
        self._patch.setenv("TRTLLM_LAB_GPUS", str(count))

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

    def mute(self) -> None:
        """Have engines load and answer without a token."""
        self._patch.setenv("TRTLLM_LAB_MUTE", "1")
