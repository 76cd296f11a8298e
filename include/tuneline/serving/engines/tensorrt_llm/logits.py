"""The logits or losses that a built engine gives at places of rows, in NVIDIA's own Python.

    python -m tuneline.serving.engines.tensorrt_llm.logits request.json

trtllm-serve gives no probabilities of a prompt, so the engine is loaded by the LLM API, as NVIDIA's
own evaluation does it (examples/llm-eval in the TensorRT-LLM repository). The engine must have been
built with `--gather_context_logits`. Nothing of this project but the standard library's code is
imported here: NVIDIA's Python has other packages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    """Write logits of each sequence, shape (tokens that count, vocabulary), or its losses."""
    request = json.loads(Path(sys.argv[1]).read_text())
    from tensorrt_llm._tensorrt_engine import LLM
    from tensorrt_llm.llmapi import KvCacheConfig, SamplingParams

    # A block that another row has left would have no logits.
    cache = KvCacheConfig(enable_block_reuse=False)
    model: Any = LLM(model=request["engine"], tokenizer=request["tokenizer"], kv_cache_config=cache)
    params = SamplingParams(max_tokens=1, return_context_logits=True)
    losses = []
    for number, (ids, places) in enumerate(request["rows"]):
        logits = model.generate(ids, params).context_logits
        if logits is None:
            raise SystemExit("the engine gives no context logits; build it for them")
        # The logits after token i predict token i + 1; columns above the vocabulary pad it.
        scored = logits[[at - 1 for at in places], : request["vocabulary"]]
        array = np.asarray(scored.float().cpu().numpy(), np.float32)
        if not request["losses"]:
            np.save(Path(request["out"]) / f"{number}.npy", array)
            continue
        likeliest = array.max(axis=1)
        total = likeliest + np.log(np.exp(array.astype(float) - likeliest[:, None]).sum(axis=1))
        targets = array[np.arange(len(places)), [ids[at] for at in places]]
        losses.append((total - targets).tolist())
    (Path(request["out"]) / "losses.json").write_text(json.dumps(losses))
    return 0


if __name__ == "__main__":
    sys.exit(main())
