"""Compare every rendered row with transformers' own rendering, token id by token id.

Ours comes from the outlined or compiled template and is encoded in pieces; theirs is
`apply_chat_template(tokenize=True)`, which renders and encodes the row whole. Both run at the
same time, on two threads: encoding does not hold the interpreter's lock.

The same ids are compared with the serving engine's in deployment: `adapter_merging` tokenizes
rows with the engine's own tokenizer and renders their prompts with its own template engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from tuneline.data.rendering.piecewise import BATCH
from tuneline.data.rendering.renderer import RenderedExample, Renderer, TemplateRefused
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


class _Batch(NamedTuple):
    """A batch in work: the rows that the template refused, and both renderings of the others."""

    rows: Sequence[Sequence[Message]]
    refused: dict[int, str]
    ours: Future[list[RenderedExample]]
    theirs: Future[list[list[int]]]


def compare(rows: Sequence[Sequence[Message]], renderer: Renderer) -> Iterator[Parity]:
    """Render rows both ways.

    Args:
        rows: the turns of each row, the last one the assistant's.
        renderer: the target model's renderer.
    """
    with ThreadPoolExecutor(2) as workers:
        ahead = None
        for start in range(0, len(rows), BATCH):
            following = _start(rows[start : start + BATCH], renderer, workers)
            if ahead is not None:
                yield from _finish(ahead, renderer)
            ahead = following
        if ahead is not None:
            yield from _finish(ahead, renderer)


def _start(
    rows: Sequence[Sequence[Message]], renderer: Renderer, workers: ThreadPoolExecutor
) -> _Batch:
    refused: dict[int, str] = {}
    for index, messages in enumerate(rows):
        try:
            text = renderer.text(messages)
        except TemplateRefused as error:
            refused[index] = f"template_refused: {str(error)[:120]}"
            continue
        missing = _left_out(messages, text)
        if missing is not None:
            turn = f"turn {missing + 1} ({messages[missing]['role']})"
            refused[index] = f"turn_left_out: the template does not write {turn}"
    good = [messages for index, messages in enumerate(rows) if index not in refused]
    if not good:
        return _Batch(rows, refused, workers.submit(list), workers.submit(list))
    return _Batch(
        rows,
        refused,
        workers.submit(renderer.render, good),
        workers.submit(renderer.template_ids, good),
    )


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


def _finish(batch: _Batch, renderer: Renderer) -> Iterator[Parity]:
    pairs = zip(batch.ours.result(), batch.theirs.result(), strict=True)
    for index, messages in enumerate(batch.rows):
        if index in batch.refused:
            yield Parity(batch.refused[index])
            continue
        example, ids = next(pairs)
        exact = example.loss_mask is not None and any(example.loss_mask)
        reason = None if exact else _boundary(messages, example.text, renderer)
        yield Parity(reason, example.ids == ids, exact, len(ids))


def _boundary(messages: Sequence[Message], text: str, renderer: Renderer) -> str:
    """Return the reason why no mask covers exactly the answers."""
    if text.startswith(renderer.text(messages[:-1], ask=True)):
        return "mask_boundary: the answer's first token would merge with the prompt's last"
    return "mask_boundary: the row does not start with what the template asks the model with"
