"""Start `trtllm-serve` under the model's own name, and let no process of it outlive this one.

    python -m tuneline.serving.engines.tensorrt_llm.launch --alias NAME MODEL --backend …

`trtllm-serve` 1.2 names a model after the last part of its folder and has no option for it, so an
engine's folder gets a link of that name, and a checkpoint a copy of it that transformers 4 reads,
with links to its weights. Everything else goes to `trtllm-serve` as it is. With
`--stop-with-stdin` this process stays beside it (see `tuneline.serving.processes`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tuneline.serving.engines.tensorrt_llm.build import copy_portable
from tuneline.serving.processes import supervise

# The PyTorch backend gives iteration statistics on request only, the TensorRT backend always.
_STATISTICS = "enable_iter_perf_stats: true\n"
# By default the cache takes nine tenths of the free memory of the GPU, so that a second server on
# it would find none.
_CACHE = "kv_cache_config:\n  max_tokens: {}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; without `--stop-with-stdin` trtllm-serve replaces this process."""
    parser = argparse.ArgumentParser(
        prog="python -m tuneline.serving.engines.tensorrt_llm.launch", allow_abbrev=False
    )
    parser.add_argument("--alias", required=True, help="name of the model in the API")
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="end when standard input closes, that is with the process that started this one",
    )
    parser.add_argument(
        "--checkpoint", action="store_true", help="MODEL is a checkpoint, for the PyTorch backend"
    )
    parser.add_argument(
        "--cache-tokens", type=int, required=True, help="tokens that the KV cache holds"
    )
    parser.add_argument("model", type=Path, help="folder of the engine or the checkpoint")
    ours, rest = parser.parse_known_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="tuneline-trtllm-"))
    named, options = folder / ours.alias, folder / "options.yaml"
    text = _CACHE.format(ours.cache_tokens)
    if ours.checkpoint:
        copy_portable(ours.model, named, weights=True)
        text += _STATISTICS
    else:
        named.symlink_to(ours.model.resolve(), target_is_directory=True)
    options.write_text(text, encoding="utf-8")
    command = ["trtllm-serve", str(named), *rest, "--extra_llm_api_options", str(options)]
    if not ours.stop_with_stdin:
        os.execvp(command[0], command)
    try:
        return supervise(command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
