"""Render rows as the model will read them, and mark which tokens it learns.

The loss mask covers exactly the assistant's tokens, each turn's end-of-turn token included:
a prompt that is rendered and encoded alone must be a prefix of the whole row's tokens,
otherwise what is trained is not what is asked at serving time, and the row can't be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.config import TargetFormat
from tuneline.data.tables import Message
from tuneline.errors import UserError

# Encoding a thousand rows at a time is fastest (larger batches only cost memory).
BATCH = 1000

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
_TEMPLATES: dict[str, str] = {
    "chatml": CHATML_TEMPLATE,
    "llama3": LLAMA3_TEMPLATE,
    "alpaca": ALPACA_TEMPLATE,
}
_NEEDED_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """A row as the model reads it.

    Attributes:
        text: the rendered conversation.
        ids: its token ids.
        loss_mask: for each token whether it counts for the loss; None when the prompt's tokens
            are not a prefix of the row's, so that no exact mask exists.
    """

    text: str
    ids: list[int]
    loss_mask: list[bool] | None


def chat_template(tokenizer: Any, target: TargetFormat) -> str:
    """The Jinja template of a target format; it has to be saved with the tuned model.

    Raises:
        UserError: the tokenizer has no template, or lacks the format's special tokens.
    """
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


class Renderer:
    """Renders and encodes rows for one tokenizer and target format.

    Args:
        tokenizer: a fast tokenizer of transformers.
        target: the target format.

    Raises:
        UserError: see `chat_template`.
    """

    def __init__(self, tokenizer: Any, target: TargetFormat) -> None:
        self.tokenizer = tokenizer
        self.target = target
        self.template = chat_template(tokenizer, target)
        self._special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def text(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Render turns; `ask` adds what makes the model answer."""
        if self.target == "chatml":
            return _chatml(messages, ask)
        if self.target == "llama3":
            return _llama3(messages, ask, self.tokenizer.bos_token or "")
        if self.target == "alpaca":
            return _alpaca(messages, self.tokenizer.eos_token)
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
        return text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts; no token is added, nothing is cut."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        ids: list[list[int]] = []
        for start in range(0, len(texts), BATCH):
            batch = backend.encode_batch_fast(
                list(texts[start : start + BATCH]), add_special_tokens=False
            )
            ids.extend(encoding.ids for encoding in batch)
        return ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of rendered texts."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        counts: list[int] = []
        for start in range(0, len(texts), BATCH):
            batch = backend.encode_batch_fast(
                list(texts[start : start + BATCH]), add_special_tokens=False
            )
            counts.extend(map(len, batch))
        return counts

    def template_ids(self, batch: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids as transformers' own `apply_chat_template(tokenize=True)` gives them."""
        ids: list[list[int]] = self.tokenizer.apply_chat_template(
            [list(messages) for messages in batch],
            chat_template=self.template,
            tokenize=True,
            return_dict=False,
        )
        return ids

    def render(self, batch: Sequence[Sequence[Message]]) -> list[RenderedExample]:
        """Render, encode and mask rows.

        Args:
            batch: turns of each row, the last one the assistant's.
        """
        texts = [self.text(messages) for messages in batch]
        parts: list[str] = []
        for messages, whole in zip(batch, texts, strict=True):
            for index, message in enumerate(messages):
                if message["role"] == "assistant":
                    parts.append(self.text(messages[:index], ask=True))
                    last = index == len(messages) - 1
                    parts.append(whole if last else self.text(messages[: index + 1]))
        # Last answers end where their row ends, so their text need not be encoded again.
        unique = list(dict.fromkeys([*texts, *parts]))
        ids_of = dict(zip(unique, self.encode(unique), strict=True))
        rendered, at = [], 0
        for messages, whole in zip(batch, texts, strict=True):
            answers = sum(message["role"] == "assistant" for message in messages)
            bounds = parts[at : at + 2 * answers]
            at += 2 * answers
            ids = ids_of[whole]
            spans = [
                (ids_of[before], ids_of[through])
                for before, through in zip(bounds[::2], bounds[1::2], strict=True)
            ]
            rendered.append(RenderedExample(whole, ids, self._mask(ids, spans)))
        return rendered

    def _mask(
        self, ids: list[int], spans: Sequence[tuple[list[int], list[int]]]
    ) -> list[bool] | None:
        mask = [False] * len(ids)
        for before, through in spans:
            start, end = len(before), len(through)
            if ids[:start] != before or ids[:end] != through or start >= end:
                return None
            # What follows the end-of-turn token (ChatML's line end) is the template's.
            last = max((i for i in range(start, end) if ids[i] in self._special), default=end - 1)
            if self.tokenizer.decode(ids[last + 1 : end]).strip():
                last = end - 1
            mask[start : last + 1] = [True] * (last + 1 - start)
        return mask


def render_example(
    messages: Sequence[Message], tokenizer: Any, target: TargetFormat
) -> RenderedExample:
    """Render one row; see `Renderer.render`, which is faster for many."""
    return Renderer(tokenizer, target).render([messages])[0]


def _chatml(messages: Sequence[Message], ask: bool) -> str:
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if ask else "")


def _llama3(messages: Sequence[Message], ask: bool, bos: str) -> str:
    turns = [
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content'].strip()}<|eot_id|>"
        for m in messages
    ]
    ending = "<|start_header_id|>assistant<|end_header_id|>\n\n" if ask else ""
    return bos + "".join(turns) + ending


def _alpaca(messages: Sequence[Message], eos: str) -> str:
    parts = [ALPACA_PREAMBLE]
    for message in messages:
        if message["role"] == "system":
            parts[0] = message["content"]
        elif message["role"] == "user":
            parts.append(f"\n\n### Instruction:\n{message['content']}\n\n### Response:\n")
        else:
            parts.append(message["content"] + eos)
    return "".join(parts)
