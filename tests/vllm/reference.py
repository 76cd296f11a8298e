"""Prompts of the tiny task, what a server answers to them, and what transformers answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.tiny_task import conversation

from tuneline.serving.engines.server import EngineServer, ServeRequest

MAX_TOKENS = 24


def request(model: Path, **sizes: Any) -> ServeRequest:
    """A request for a server of one thread."""
    return ServeRequest(
        model, "tiny", **{"parallel": 1, "context_tokens": 512, "threads": 1, **sizes}
    )


def prompts(count: int) -> list[list[dict[str, str]]]:
    """Questions of the task that nothing was trained on."""
    return [conversation(5000 + number)[0][:-1] for number in range(count)]


def served(
    server: EngineServer, asked: Sequence[Any], concurrency: int = 4, **options: Any
) -> list[str]:
    """What a server answers, greedily."""
    with server.client() as client:
        results = client.complete_batch(
            asked, concurrency=concurrency, **{"max_tokens": MAX_TOKENS, **options}
        )
    return [result.text for result in results]


def generated(folder: Path, asked: Sequence[Any], max_tokens: int = MAX_TOKENS) -> list[str]:
    """What transformers answers in float32, greedily, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for messages in asked:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            tokens = model.generate(**given, max_new_tokens=max_tokens, do_sample=False)
        new = tokens[0, given["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


def share_equal(left: Sequence[str], right: Sequence[str]) -> float:
    """The share of rows with the same answer."""
    assert len(left) == len(right) > 0
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)
