"""Stand-in of the classes that reading logits needs."""

from dataclasses import dataclass


@dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True


@dataclass
class SamplingParams:
    max_tokens: int = 32
    return_context_logits: bool = False
