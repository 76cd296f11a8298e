"""Stand-in of the LLM API on a built engine; llama.cpp gives the logits."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tests.lab.trtllm.weights import read_engine


class LLM:
    """A loaded engine."""

    def __init__(self, model: str, tokenizer: str, kv_cache_config: Any) -> None:
        from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel

        assert (Path(tokenizer) / "tokenizer.json").is_file()
        config, _, gguf = read_engine(Path(model))
        self._build, self._reuse = config["build_config"], kv_cache_config.enable_block_reuse
        file = Path(tempfile.mkdtemp()) / "model.gguf"
        file.write_bytes(gguf)
        self._model = LlamaModel(LlamaLibrary(), file, context=self._build["max_seq_len"])
        file.unlink()

    def generate(self, ids: list[int], params: Any) -> Any:
        """An answer with the logits of the prompt, if the engine was built for them."""
        if len(ids) + params.max_tokens > self._build["max_seq_len"]:
            raise ValueError("the prompt is longer than max_seq_len")
        if not params.return_context_logits or not self._build["gather_context_logits"]:
            return SimpleNamespace(context_logits=None)
        assert not self._reuse, "blocks that are used again have no logits"
        logits = torch.from_numpy(self._model.logits(ids))
        # The engine pads the vocabulary.
        return SimpleNamespace(context_logits=torch.nn.functional.pad(logits, (0, 8)))
