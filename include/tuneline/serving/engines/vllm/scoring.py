"""The distance between checkpoints, and a checkpoint's losses, by vLLM's own log-probabilities.

A child process loads a checkpoint with the options that it is served with. For a distance it writes
the log-probabilities of the whole vocabulary after each scored position, and the parent compares
two checkpoints; for losses it writes those of the given tokens alone.

    python -m tuneline.serving.engines.vllm.scoring < request.json
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.serving.engines.divergence import Divergence, Rows, compare_variants
from tuneline.serving.engines.server import ServeRequest, end_error
from tuneline.serving.engines.vllm.launch import cause, serve_environment, serve_options
from tuneline.serving.processes import last_line


def distances(
    reference: Path, others: Mapping[str, Path], rows: Rows, request: ServeRequest
) -> dict[str, Divergence]:
    """Return the distance of each checkpoint from the reference.

    Raises:
        UserError: if a checkpoint can't be loaded.
        TunelineError: if vLLM failed.
    """
    return compare_variants(
        reference, others, rows, lambda model, folder: _evaluate(model, rows, request, folder)
    )


def losses(model: Path, rows: Rows, request: ServeRequest) -> list[list[float]]:
    """Return the loss of a checkpoint on each token that counts; see `Engine.losses`."""
    found: list[list[float]] = [[] for _ in rows]
    counted = [number for number, row in enumerate(rows) if row.places]
    if not counted:
        return found
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _evaluate(model, [rows[number] for number in counted], request, folder, whole=False)
        for place, number in enumerate(counted):
            found[number] = (-np.load(folder / f"{place}.npy").astype(np.float64)).tolist()
    return found


def _evaluate(
    model: Path, rows: Rows, request: ServeRequest, folder: Path, *, whole: bool = True
) -> None:
    """Write the log-probabilities of a checkpoint, one array for each row."""
    adapter = request.answering_adapter
    asked = {
        "llm": _llm_options(model, rows, request),
        "folder": str(folder),
        "adapter": adapter and str(adapter),
        "whole": whole,
        "rows": rows,
    }
    environment = child_environment(**serve_environment(request.threads or default_threads()))
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            child.communicate(json.dumps(asked).encode())
        finally:
            # The engine is a process of its own, which goes on if the child was killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.returncode != 0:
            log.seek(0)
            text = log.read().decode(errors="replace")
            raise end_error("vLLM", model, child.returncode, cause(text) or last_line(text))


def _llm_options(model: Path, rows: Rows, request: ServeRequest) -> dict[str, Any]:
    # One token is generated after each row, since vLLM does not evaluate a prompt alone.
    context = max(len(row.ids) for row in rows) + 1
    options = serve_options(replace(request, model=model, parallel=1, context_tokens=context))
    found = {
        "model": str(model),
        "dtype": options["--dtype"],
        "max_model_len": context,
        "max_num_seqs": 1,
        # A row is evaluated in one piece.
        "max_num_batched_tokens": max(context, 2048),
        "enforce_eager": "--enforce-eager" in options,
        "kv_cache_memory_bytes": options.get("--kv-cache-memory-bytes"),
        "enable_prefix_caching": False,
        "generation_config": "vllm",
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
    }
    if request.answering_adapter is not None:
        found |= {"enable_lora": True, "max_lora_rank": options["--max-lora-rank"]}
    return found


def _write(asked: Mapping[str, Any]) -> None:
    from vllm.lora.request import LoRARequest

    from vllm import LLM, SamplingParams

    llm = LLM(**asked["llm"])
    adapter = LoRARequest("adapter", 1, asked["adapter"]) if asked["adapter"] else None
    # Tokens stay ids: to spell out the whole vocabulary at each position would take minutes.
    options = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        # All of the vocabulary, or none but the token of the prompt.
        prompt_logprobs=-1 if asked["whole"] else 0,
        flat_logprobs=True,
        detokenize=False,
    )
    read = _dense if asked["whole"] else _given
    for number, (ids, places) in enumerate(asked["rows"]):
        prompt = {"prompt_token_ids": ids}
        answer = llm.generate(prompt, options, use_tqdm=False, lora_request=adapter)[0]
        scores = [read(answer.prompt_logprobs, at) for at in places]
        np.save(Path(asked["folder"]) / f"{number}.npy", np.stack(scores))


def _dense(flat: Any, position: int) -> NDArray[np.float32]:
    """Return the log-probabilities at a position of vLLM's flat lists, in the order of ids."""
    part = slice(flat.start_indices[position], flat.end_indices[position])
    ids = np.asarray(flat.token_ids[part])
    values = np.full(int(ids.max()) + 1, -np.inf, dtype=np.float32)
    values[ids] = flat.logprobs[part]
    return values


def _given(flat: Any, position: int) -> np.float32:
    """Return the log-probability of the prompt's own token, which vLLM lists first."""
    return np.float32(flat.logprobs[flat.start_indices[position]])


if __name__ == "__main__":
    _write(json.load(sys.stdin))
