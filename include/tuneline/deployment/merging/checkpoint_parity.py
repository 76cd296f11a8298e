"""Compare base plus adapter with the merged checkpoint, in transformers and float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.gguf.tokenizer import END_OF_TURN


@dataclass(frozen=True)
class LogitParity:
    """The distance between the distributions of two checkpoints.

    Attributes:
        mean_kl: mean KL divergence from adapter to merged over all tokens, in nats.
        max_change: largest absolute change of a logit.
        same_top_token: share of positions with the same most probable token.
        greedy: greedy answers of the merged checkpoint, without special tokens.
    """

    mean_kl: float
    max_change: float
    same_top_token: float
    greedy: tuple[str, ...]


def compare_checkpoints(
    base_dir: Path,
    adapter_dir: Path,
    merged_dir: Path,
    *,
    texts: Sequence[str],
    prompts: Sequence[str],
    max_tokens: int,
    threads: int,
) -> LogitParity:
    """Compare base plus adapter with the merged checkpoint, and answer prompts with the latter.

    Args:
        base_dir: checkpoint of the base.
        adapter_dir: PEFT adapter of that base.
        merged_dir: checkpoint with the adapter merged, tokenizer included.
        texts: rendered conversations whose logits are compared, one at a time.
        prompts: rendered prompts for the greedy answers.
        max_tokens: length limit of an answer, in tokens.
        threads: number of threads; more than there are free cores cost a factor of seven.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(merged_dir, local_files_only=True)

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()

    def ids_of(text: str) -> Any:
        encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return encoded["input_ids"]

    divergences, tops, largest = [], [], 0.0
    with torch.inference_mode():
        apart = PeftModel.from_pretrained(load(base_dir), adapter_dir).eval()
        before = [apart(input_ids=ids_of(text)).logits[0] for text in texts]
        del apart
        merged = load(merged_dir)
        for text, old in zip(texts, before, strict=True):
            new = merged(input_ids=ids_of(text)).logits[0]
            first, second = old.log_softmax(-1), new.log_softmax(-1)
            divergences.append((first.exp() * (first - second)).sum(-1).clamp_min(0))
            tops.append(old.argmax(-1) == new.argmax(-1))
            largest = max(largest, float((old - new).abs().max()))
        greedy = tuple(_answer(merged, tokenizer, ids_of(text), max_tokens) for text in prompts)
    return LogitParity(
        mean_kl=float(torch.cat(divergences).mean()),
        max_change=round(largest, 5),
        same_top_token=round(float(torch.cat(tops).float().mean()), 4),
        greedy=greedy,
    )


def _answer(model: Any, tokenizer: Any, ids: Any, max_tokens: int) -> str:
    # The sampling fields of a checkpoint's generation config would only bring warnings.
    out = model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        max_new_tokens=max_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=_ends(tokenizer),
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    # Decoded behind its prompt: some tokenizers take the space at the start of a text away, which
    # the engine keeps.
    prompt, whole = (
        str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in (ids[0], out[0])
    )
    return whole[len(prompt) :]


def _ends(tokenizer: Any) -> list[int]:
    """Return the tokens at which the engine ends an answer: end of sequence and end of turn."""
    vocabulary = tokenizer.get_vocab()
    ends = {tokenizer.eos_token, *END_OF_TURN}
    return sorted(vocabulary[token] for token in ends if token in vocabulary)
