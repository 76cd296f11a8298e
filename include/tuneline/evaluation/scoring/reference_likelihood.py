"""Compare how likely the model holds the expected text of a row and that of another row.

chrF compares the one text that a model wrote with the one that was expected; a good text in other
words scores low. The log-probability of an expected text, asked of the engine that ships, depends
on no wording that was drawn. A model whose texts have nothing to do with the question holds those
of other rows as likely, whatever it knows of their style: so every answer is scored once with its
own texts and once with those of another row, all else of it being equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tuneline.asking.asking import losses
from tuneline.asking.models import Candidate
from tuneline.asking.rows import spread
from tuneline.asking.tasks import Judged
from tuneline.bases import base_of
from tuneline.data.conversations.answers import answer_object, dump_like
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.evidence import Breach, Finding, measure
from tuneline.failures import one_line
from tuneline.models.base_model import load_tokenizer
from tuneline.statistics import z_of
from tuneline.step_context import StepContext

# Rows that are scored, one of each group: two passes over their prompts.
ROWS = 64
_NAME = "expected_text_preference"


def judge_texts(
    ctx: StepContext, chosen: Candidate, rows: Sequence[Row], judged: Sequence[Judged]
) -> tuple[Finding, dict[str, list[float | None]]]:
    """Ask how likely the candidate holds rows' own texts and those of another row, and compare.

    A row counts where the tokens of its answer can be told from those of its prompt, and both forms
    fit the context that is served. What is not measured is inconclusive in production, unless
    people review the answers.

    Args:
        judged: the judgements of the answers and of each other part of them.

    Returns:
        The finding, empty if no answer holds free text; the columns of `answers.parquet`.
    """
    texts = [each for each in judged if each.task.free_text and not each.alike]
    if not texts:
        return Finding([], ""), {}
    at = sorted({place for each in texts for place in each.at})
    groups, fields = judged[0].groups, [each.task.field for each in texts]
    of_texts = [groups[place] for place in at] if groups else ()
    found, unknown = log_probabilities(ctx, chosen, [rows[n] for n in at], of_texts, fields)
    columns: dict[str, list[float | None]] = {
        name: [found[row.row_id][at] if row.row_id in found else None for row in rows]
        for at, name in enumerate(("expected_logprob", "swapped_logprob"))
    }
    if not unknown:
        gains = [own - other for own, other in found.values()]
        return preference(gains, judged[0].tail), columns
    required = ctx.config.profile == "production" and not ctx.config.evaluation.review
    lower = measure(f"{_NAME}_lower", None, "nats", ">", 0.0, on_breach="inconclusive")
    known = measure(_NAME, f"not measured: {unknown}", "")
    said = f"the likelihood of the expected texts is not measured: {unknown}; "
    return Finding([known, *([lower] if required else [])], said), columns


def preference(gains: Sequence[float], tail: float) -> Finding:
    """Judge by how much rows' own texts are likelier than others, in nats."""
    value, error = float(np.mean(gains)), float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    # No number for a model that holds a text impossible, and then the rule is broken.
    lower = round(value - z_of(tail) * error, 4)
    breach: Breach = "inconclusive" if value > 0 else "fail"
    return Finding(
        [
            measure("expected_text_rows", len(gains), "rows"),
            measure(_NAME, round(value, 4), "nats", noise=round(error, 4)),
            measure(f"{_NAME}_lower", lower, "nats", ">", 0.0, on_breach=breach),
        ],
        f"the expected text of a row is {value:+.2f} nats likelier to it than that of another row, "
        f"at the lower end {lower:+.2f}; ",
    )


def log_probabilities(
    ctx: StepContext,
    chosen: Candidate,
    rows: Sequence[Row],
    groups: Sequence[int],
    fields: Sequence[str],
) -> tuple[dict[str, tuple[float, float]], str]:
    """Return both log-probabilities of each row by its id, or why there are none."""
    alone = list(dict(zip(groups or range(len(rows)), rows, strict=True)).values())
    drawn = spread(alone, ROWS, ctx.config.training.seed)
    renderer = Renderer(load_tokenizer(base_of(ctx).path), ctx.config.data.target_format)
    # The next row of the draw has another label, if there is one.
    pairs = list(zip(drawn, [*drawn[1:], *drawn[:1]], strict=True))
    forms_of = zip(
        renderer.render([with_texts(row, row, fields).messages for row in drawn]),
        renderer.render([with_texts(row, other, fields).messages for row, other in pairs]),
        strict=True,
    )
    longest = ctx.config.deployment.context_tokens
    fitting = {
        row.row_id: forms
        for row, forms in zip(drawn, forms_of, strict=True)
        if all(one.loss_mask is not None and len(one.ids) <= longest for one in forms)
    }
    if len(fitting) < 2:
        return {}, "the answers of fewer than two rows fit the context"
    forms = [form for both in fitting.values() for form in both]
    ids, masks = [form.ids for form in forms], [form.last_answer() for form in forms]
    try:
        found, _ = losses(ctx, chosen.model, ids, masks, "tuned model")
    except UserError as error:
        return {}, one_line(str(error))
    if not found:
        name = ctx.config.deployment.engine
        return {}, f"{name} does not tell the probabilities of given tokens"
    both = zip((-loss for loss in found[::2]), (-loss for loss in found[1::2]), strict=True)
    return dict(zip(fitting, both, strict=True)), ""


def with_texts(row: Row, other: Row, fields: Sequence[str]) -> Row:
    """Return a row whose answer has the texts of another; a field of "" is the whole answer."""
    answer, value = other.answer, answer_object(row.answer)
    if "" not in fields and value is not None:
        texts = answer_object(other.answer) or {}
        swapped = {name: texts[name] for name in fields if name in value and name in texts}
        answer = dump_like({**value, **swapped}, row.answer)
    return replace(row, messages=[*row.prompt, {**row.messages[-1], "content": answer}])
