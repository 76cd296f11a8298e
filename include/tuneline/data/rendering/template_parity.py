"""Compare every rendered row with transformers' own rendering, token id by token id.

Ours comes from the outlined or compiled template and is encoded in pieces; theirs is rendered by
`apply_chat_template` and encoded whole. Both run at the same time, on two threads: encoding does
not hold the interpreter's lock.

The same ids are compared with the serving engine's in deployment: `adapter_merging` tokenizes
rows with the engine's own tokenizer and renders their prompts with its own template engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tuneline.data.rendering.piecewise import BATCH
from tuneline.data.rendering.renderer import Renderer, TemplateRefused
from tuneline.data.tables.rows import Message


@dataclass(frozen=True, slots=True)
class Parity:
    """The comparison of one row.

    Attributes:
        reason: reason why the row can't be trained on (`code: detail`), None if it can.
        tokens_equal: True if both ways give the same token ids; None if nothing was rendered.
        mask_exact: True if exactly the assistant's tokens can be marked, and there are some.
        tokens: number of tokens by transformers, 0 if nothing was rendered.
    """

    reason: str | None
    tokens_equal: bool | None = None
    mask_exact: bool | None = None
    tokens: int = 0


def compare(rows: Sequence[Sequence[Message]], renderer: Renderer) -> Iterator[Parity]:
    """Render rows both ways.

    Args:
        rows: the turns of each row, the last one the assistant's.
        renderer: the target model's renderer.
    """
    with ThreadPoolExecutor(1) as worker:
        for start in range(0, len(rows), BATCH):
            yield from _compare_batch(rows[start : start + BATCH], renderer, worker)


def _compare_batch(
    rows: Sequence[Sequence[Message]], renderer: Renderer, worker: ThreadPoolExecutor
) -> Iterator[Parity]:
    reasons = [_refusal(messages, renderer) for messages in rows]
    good = [m for m, reason in zip(rows, reasons, strict=True) if reason is None]
    ours = worker.submit(renderer.render, good)
    theirs = renderer.template_ids(good) if good else []
    pairs = zip(ours.result(), theirs, strict=True)
    for messages, refusal in zip(rows, reasons, strict=True):
        if refusal is not None:
            yield Parity(refusal)
            continue
        example, ids = next(pairs)
        exact = example.loss_mask is not None and any(example.loss_mask)
        reason = None if exact else _boundary(messages, example.text, renderer)
        yield Parity(reason, example.ids == ids, exact, len(ids))


def _refusal(messages: Sequence[Message], renderer: Renderer) -> str | None:
    """Return the reason if the template refuses a row, or leaves out one of its turns."""
    try:
        text = renderer.text(messages)
    except TemplateRefused as error:
        return f"template_refused: {str(error)[:120]}"
    missing = _left_out(messages, text)
    if missing is None:
        return None
    turn = f"turn {missing + 1} ({messages[missing]['role']})"
    return f"turn_left_out: the template does not write {turn}"


def _left_out(messages: Sequence[Message], text: str) -> int | None:
    """Return the first turn that a rendered text does not hold.

    Answers before the last may be shortened: templates of reasoning models drop the thoughts.
    """
    last = len(messages) - 1
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and index < last:
            continue
        if message["content"].strip() not in text:
            return index
    return None


def _boundary(messages: Sequence[Message], text: str, renderer: Renderer) -> str:
    """Return the reason why no mask covers exactly the answers."""
    if text.startswith(renderer.text(messages[:-1], ask=True)):
        return "mask_boundary: the answer's first token would merge with the prompt's last"
    return "mask_boundary: the row does not start with what the template asks the model with"
