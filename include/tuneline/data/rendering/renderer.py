"""Render rows as the model will read them, and mark the tokens that it learns.

A prompt that is rendered and encoded alone must be a prefix of the whole row's tokens; otherwise
training and serving would see different prompts, and the row can't be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from tuneline.config import TargetFormat
from tuneline.data.rendering.pieces import BATCH, PieceEncoder
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError

CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The preamble of Stanford Alpaca's prompt without input; a system turn takes its place.
ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "{{ '" + ALPACA_PREAMBLE + "' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '\n\n### Instruction:\n' + message['content'] + '\n\n### Response:\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
_TEMPLATES = {"chatml": CHATML_TEMPLATE, "llama3": LLAMA3_TEMPLATE, "alpaca": ALPACA_TEMPLATE}
_NEEDED_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """A row as the model reads it; no mask if the prompt's ids are not a prefix of the row's."""

    text: str
    ids: list[int]
    loss_mask: list[bool] | None

    def last_answer(self) -> list[bool]:
        """Return the mask of the last answer alone; `loss_mask` covers earlier ones too."""
        mask = list(self.loss_mask or [])
        end = max((place for place, learned in enumerate(mask) if learned), default=-1)
        start = end
        while start >= 0 and mask[start]:
            start -= 1
        return [start < place <= end for place in range(len(mask))]


def chat_template(tokenizer: Any, target: TargetFormat) -> str:
    """Return the template of a target format; UserError without one, or without its tokens."""
    if target == "tokenizer":
        template = tokenizer.chat_template
        if not isinstance(template, str):
            raise UserError(
                "the base model's tokenizer has no chat template; "
                "set data.target_format to chatml, llama3 or alpaca"
            )
        return template
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _NEEDED_TOKENS.get(target, ()) if token not in vocabulary]
    if target == "alpaca" and not tokenizer.eos_token:
        missing.append("an end-of-sequence token")
    if missing:
        raise UserError(
            f"data.target_format {target} needs {', '.join(missing)}, which the base model's "
            "tokenizer does not have; choose `tokenizer`"
        )
    return _TEMPLATES[target]


class TemplateRefused(ValueError):
    """A chat template raised an error over a row; the message is the template's own."""


def _guarded(render: Callable[[], str]) -> str:
    from jinja2 import TemplateError

    try:
        return render()
    except (TemplateError, TypeError) as error:
        raise TemplateRefused(str(error).splitlines()[0] if str(error) else "") from None


class Renderer:
    """Renders and encodes rows for one fast tokenizer and target format.

    A template is compiled once and called without the copies that `apply_chat_template` makes of
    every row.

    Raises:
        UserError: see `chat_template`.
    """

    def __init__(self, tokenizer: Any, target: TargetFormat) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.tokenizer = tokenizer
        self.target = target
        self.template = chat_template(tokenizer, target)
        self._pieces = PieceEncoder(tokenizer.backend_tokenizer)
        self._names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        # As transformers does it: sandboxed, with its filters, once for each.
        self._compiled = _compile_jinja_template(self.template)
        self._is_blank = lru_cache(maxsize=1024)(lambda ids: not tokenizer.decode([*ids]).strip())

    def text(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Render turns, with the prompt for an answer to `ask`; TemplateRefused by the template."""
        return _guarded(
            lambda: self._compiled.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=ask,
                **self._names,
            )
        )

    def text_with_tools(
        self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> str:
        """Render a conversation with tools by transformers itself; see `text`."""
        return _guarded(
            lambda: self.tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self.template, tokenize=False
            )
        )

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the token ids of rendered texts; no token is added, nothing is cut."""
        return self._pieces.encode(texts)

    def count(self, texts: Iterable[str]) -> list[int]:
        """Count the tokens of rendered texts."""
        return self._pieces.count(texts)

    def template_ids(self, batch: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Return the token ids of transformers' own rendering, each row encoded whole.

        The text is encoded here, without the masks that transformers makes; one row is rendered by
        it alone as well, and if its ids differ, all are.
        """
        rows = [list(messages) for messages in batch]
        texts = self.tokenizer.apply_chat_template(
            rows, chat_template=self.template, tokenize=False
        )
        ids = self._pieces.encode_whole(texts)
        return ids if ids[:1] == self._by_transformers(rows[:1]) else self._by_transformers(rows)

    def _by_transformers(self, rows: list[list[Message]]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer.apply_chat_template(
            rows,
            chat_template=self.template,
            tokenize=True,
            return_dict=False,
            # Without the masks that would be made beside the ids.
            tokenizer_kwargs={"return_attention_mask": False, "return_token_type_ids": False},
        )
        return ids

    def render(self, batch: Sequence[Sequence[Message]]) -> list[RenderedExample]:
        """Render, encode and mask rows that end in an answer; TemplateRefused by the template."""
        texts: list[str] = []
        for messages in batch:
            # The whole row, then the text before each answer and through each but the last.
            texts.append(self.text(messages))
            for index, message in enumerate(messages):
                if message["role"] == "assistant":
                    texts.append(self.text(messages[:index], ask=True))
                    if index < len(messages) - 1:
                        texts.append(self.text(messages[: index + 1]))
        # Prompts consist of pieces of their rows, so that little is encoded again.
        encoded = iter(zip(texts, self.encode(texts), strict=True))
        rendered = []
        for messages in batch:
            whole, ids = next(encoded)
            spans = []
            for index, message in enumerate(messages):
                if message["role"] == "assistant":
                    before = next(encoded)[1]
                    last = index == len(messages) - 1
                    spans.append((before, ids if last else next(encoded)[1]))
            rendered.append(RenderedExample(whole, ids, self._mask(ids, spans)))
        return rendered

    def _mask(
        self, ids: list[int], spans: Sequence[tuple[list[int], list[int]]]
    ) -> list[bool] | None:
        mask = [False] * len(ids)
        for before, through in spans:
            start, end = len(before), len(through)
            if start >= end or ids[:start] != before or ids[:end] != through:
                return None
            # Text after the end-of-turn token (ChatML's line end) belongs to the template.
            last = next(
                (i for i in range(end - 1, start - 1, -1) if ids[i] in self.special_ids), end
            )
            if last == end or not self._is_blank(tuple(ids[last + 1 : end])):
                last = end - 1
            mask[start : last + 1] = [True] * (last + 1 - start)
        return mask


class Parity(NamedTuple):
    """The comparison of one row; flags are None and `tokens` 0 if nothing was rendered."""

    reason: str | None
    tokens_equal: bool | None = None
    mask_exact: bool | None = None
    tokens: int = 0


def compare(rows: Sequence[Sequence[Message]], renderer: Renderer) -> Iterator[Parity]:
    """Render rows, which end in an answer, both ways."""
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
        reason = None
        if not exact and example.text.startswith(renderer.text(messages[:-1], ask=True)):
            reason = "mask_boundary: the answer's first token would merge with the prompt's last"
        elif not exact:
            asked = "the row does not start with what the template asks the model with"
            reason = f"mask_boundary: {asked}"
        yield Parity(reason, example.ids == ids, exact, len(ids))


def _refusal(messages: Sequence[Message], renderer: Renderer) -> str | None:
    """Return the reason if the template refuses a row, or leaves out one of its turns."""
    try:
        text = renderer.text(messages)
    except TemplateRefused as error:
        return f"template_refused: {str(error)[:120]}"
    for number, message in enumerate(messages, 1):
        # A template may shorten earlier answers.
        counts = message["role"] != "assistant" or number == len(messages)
        if counts and message["content"].strip() not in text:
            turn = f"turn {number} ({message['role']})"
            return f"turn_left_out: the template does not write {turn}"
    return None
