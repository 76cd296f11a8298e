"""Render rows as the model will read them, and mark the tokens that it learns.

A prompt that is rendered and encoded alone must be a prefix of the whole row's tokens; otherwise
training and serving would see different prompts, and the row can't be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

from tuneline.config import TargetFormat
from tuneline.data.rendering.answer_form import (
    NO_END,
    PLAIN_TURNS,
    TURNS_WITH_A_CALL,
    AnswerForm,
    moves_system,
    read_form,
    with_prompt,
)
from tuneline.data.rendering.pieces import BATCH, PieceEncoder
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError
from tuneline.models.chat_templates import adapt_template, special_names
from tuneline.models.tool_turns import declares_tools, ends_in_call, with_tools

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
    """A row as the model reads it; no mask if the prompt's ids are not a prefix of the row's.

    `template_ids` are those of what the template itself writes: without the end of a thought or of
    the answer that a row needs besides. `answer_tokens` are those of the longest answer,
    `prompt_tokens` those of the longest prompt.
    """

    text: str
    ids: list[int]
    loss_mask: list[bool] | None
    template_ids: list[int]
    answer_tokens: int = 0
    prompt_tokens: int = 0

    def last_answer(self) -> list[bool]:
        """Return the mask of the last answer alone; `loss_mask` covers earlier ones too."""
        mask = list(self.loss_mask or [])
        end = max((place for place, learned in enumerate(mask) if learned), default=-1)
        start = end
        while start >= 0 and mask[start]:
            start -= 1
        return [start < place <= end for place in range(len(mask))]


def chat_template(tokenizer: Any, target: TargetFormat) -> str:
    """Return the template that rows are trained, exported and served with.

    The model's own template has its thoughts off. UserError without a template, or its tokens.
    """
    if target == "tokenizer":
        template = tokenizer.chat_template
        if not isinstance(template, str):
            raise UserError(
                "the base model's tokenizer has no chat template; "
                "set data.target_format to chatml, llama3 or alpaca"
            )
        return adapt_template(template, special_names(tokenizer))
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
        self._names = special_names(tokenizer)
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        # As transformers does it: sandboxed, with its filters, once for each.
        self._compiled = _compile_jinja_template(self.template)
        self.form: AnswerForm = read_form(self.written, self.template, tokenizer, PLAIN_TURNS)
        self.call_form = read_form(self.written, self.template, tokenizer, TURNS_WITH_A_CALL)
        self._moves = moves_system(self.written)

    def text(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Render a row, or the prompt for an answer to `ask`; TemplateRefused by the template.

        A row that ends in an answer is what the model reads and writes: with the empty end of a
        thought that the question opens, and with the end of the answer.
        """
        text = self.written(messages, ask=ask)
        if ask or not messages or messages[-1]["role"] != "assistant":
            return text
        form = self.form_of(messages)
        moved = self._is_moved(messages)
        asked = self.written(messages[:-1], ask=True) if form.opened or moved else ""
        if moved and (question := messages[-2]["content"].strip()):
            text = with_prompt(text, asked, question)
        return form.complete(text, asked)

    def form_of(self, messages: Sequence[Message]) -> AnswerForm:
        """Return the form of the last turn, an answer or a call."""
        return self.call_form if ends_in_call(messages) else self.form

    def stays(self, messages: Sequence[Message]) -> bool:
        """Return True if every answer is still rendered as it was given once more turns follow."""
        stays = self.form.stays and (self.call_form.stays or not declares_tools(messages))
        return stays and not self._is_moved(messages)

    def _is_moved(self, messages: Sequence[Message]) -> bool:
        return self._moves and messages[0]["role"] == "system"

    def _completes(self, messages: Sequence[Message]) -> bool:
        """Return True if a row gets something that the template does not write."""
        return self._is_moved(messages) or self.form_of(messages).completes

    def written(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Return what the template itself writes; see `text`."""
        from jinja2 import TemplateError

        try:
            turns, tools = with_tools(messages)
            names = {**self._names, "documents": None, "add_generation_prompt": ask}
            return str(self._compiled.render(messages=turns, tools=tools, **names))
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise TemplateRefused(str(error).splitlines()[0] if str(error) else "") from None

    def learned_as(self, messages: Sequence[Message]) -> list[list[Message]]:
        """Return the rows that a conversation is learned as.

        More than one where the template writes an answer otherwise once more turns follow: then
        each answer is learned as serving asks for it.
        """
        ends = [n for n, turn in enumerate(messages, 1) if turn["role"] == "assistant"]
        return [list(messages)] if self.stays(messages) else [[*messages[:end]] for end in ends]

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
        ids = self._pieces.encode_whole(self._by_transformers(batch, tokenize=False))
        same = ids[:1] == self._by_transformers(batch[:1])
        return ids if same else self._by_transformers(batch)

    def _by_transformers(
        self, batch: Sequence[Sequence[Message]], *, tokenize: bool = True
    ) -> list[Any]:
        # Without the masks that would be made beside the ids.
        masks = {"return_attention_mask": False, "return_token_type_ids": False}
        found: list[Any] = []
        # A call takes many rows of the same tools; most rows have none.
        for tools, rows in groupby(map(with_tools, batch), key=itemgetter(1)):
            found += self.tokenizer.apply_chat_template(
                [turns for turns, _ in rows],
                tools=tools,
                chat_template=self.template,
                tokenize=tokenize,
                return_dict=False,
                tokenizer_kwargs=masks if tokenize else None,
            )
        return found

    def render(self, batch: Sequence[Sequence[Message]]) -> list[RenderedExample]:
        """Render, encode and mask rows that end in an answer; TemplateRefused by the template.

        Where `learned_as` makes several rows of one, only the last answer is in the mask.
        """
        texts = list[str]()
        for messages in batch:
            texts.append(whole := self.text(messages))
            if self._completes(messages):
                texts.append(self.written(messages))
            for index in self._answers(messages):
                last = index == len(messages) - 1
                through = whole if last else self.text(messages[: index + 1])
                form = self.form_of(messages[: index + 1])
                ends = form.end and through.endswith(form.end + form.after)
                end = len(through) - len(form.after) if ends else 0
                texts += [self.text(messages[:index], ask=True), through[:end]]
        # Prompts consist of pieces of their rows, so that little is encoded again.
        encoded = zip(texts, self.encode(texts), strict=True)
        rendered = []
        for messages in batch:
            text, ids = next(encoded)
            written = next(encoded)[1] if self._completes(messages) else ids
            spans = [(next(encoded)[1], next(encoded)[1]) for _ in self._answers(messages)]
            longest = max((len(through) - len(asked) for asked, through in spans), default=0)
            prompt = max((len(asked) for asked, _ in spans), default=0)
            rendered.append(RenderedExample(text, ids, _mask(ids, spans), written, longest, prompt))
        return rendered

    def _answers(self, messages: Sequence[Message]) -> list[int]:
        """Return the places of the answers that are learned."""
        places = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
        return places if self.stays(messages) else places[-1:]


def _mask(ids: list[int], spans: Sequence[tuple[list[int], list[int]]]) -> list[bool] | None:
    """Mark what lies between the ids before and through each answer; None if it can't be told."""
    mask = [False] * len(ids)
    for before, through in spans:
        start, end = len(before), len(through)
        if start >= end or ids[:start] != before or ids[:end] != through:
            return None
        mask[start:end] = [True] * (end - start)
    return mask


class Parity(NamedTuple):
    """The comparison of one row; flags are None and tokens 0 if nothing was rendered."""

    reason: str | None
    tokens_equal: bool | None = None
    mask_exact: bool | None = None
    tokens: int = 0
    answer_tokens: int = 0
    prompt_tokens: int = 0


def compare(rows: Sequence[Sequence[Message]], renderer: Renderer) -> Iterator[Parity]:
    """Render rows, which end in an answer, both ways."""
    with ThreadPoolExecutor(1) as worker:
        for start in range(0, len(rows), BATCH):
            yield from _compare_batch(rows[start : start + BATCH], renderer, worker)


def _compare_batch(
    rows: Sequence[Sequence[Message]], renderer: Renderer, worker: ThreadPoolExecutor
) -> Iterator[Parity]:
    reasons = [_refusal(messages, renderer) for messages in rows]
    learned = [
        renderer.learned_as(messages) if reason is None else []
        for messages, reason in zip(rows, reasons, strict=True)
    ]
    good = [*chain.from_iterable(learned)]
    ours = worker.submit(renderer.render, good)
    theirs = renderer.template_ids(good) if good else []
    pairs = zip(good, ours.result(), theirs, strict=True)
    for parts, refusal in zip(learned, reasons, strict=True):
        if refusal is not None:
            yield Parity(refusal)
            continue
        found = [_judged(*pair, renderer) for pair in islice(pairs, len(parts))]
        # The last part is the whole conversation.
        yield Parity(
            next((part.reason for part in found if part.reason), None),
            all(part.tokens_equal for part in found),
            all(part.mask_exact for part in found),
            found[-1].tokens,
            max(part.answer_tokens for part in found),
            max(part.prompt_tokens for part in found),
        )


def _judged(
    messages: Sequence[Message], example: RenderedExample, ids: list[int], renderer: Renderer
) -> Parity:
    """Compare a rendered row with the ids that transformers gives of it."""
    exact = example.loss_mask is not None and any(example.loss_mask)
    reason = None
    if not exact and not renderer.form_of(messages).end:
        reason = NO_END
    elif not exact and example.text.startswith(renderer.text(messages[:-1], ask=True)):
        reason = "mask_boundary: the answer's first token would merge with the prompt's last"
    elif not exact:
        reason = (
            "mask_boundary: the chat template does not begin the row with what it asks the model "
            "with (an answer must hold no thought)"
        )
    same = example.template_ids == ids
    sizes = example.answer_tokens, example.prompt_tokens
    return Parity(reason, same, exact, len(example.ids), *sizes)


def _refusal(messages: Sequence[Message], renderer: Renderer) -> str | None:
    """Return the reason if the template refuses a row, or leaves out one of its turns."""
    try:
        text = renderer.text(messages)
    except TemplateRefused as error:
        return f"template_refused: {str(error)[:120]}"
    turns, _ = with_tools(messages)
    for number, message in enumerate(turns, 1):
        # A template may shorten earlier answers, and write results as JSON.
        counts = message["role"] != "assistant" or number == len(turns)
        said = message["content"].strip()
        if counts and said not in text and json.dumps(said, ensure_ascii=False) not in text:
            turn = f"turn {number} ({message['role']})"
            return f"turn_left_out: the template does not write {turn}"
    return None
