"""Try which setting makes answers repeat themselves, after they were seen to differ.

The prompts that flipped are first asked again as configured: a setting is only said to mend what
comes again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneline.data.tables.rows import Row
from tuneline.errors import TunelineError, first_line
from tuneline.evaluation.repeats.asking import AS_CONFIGURED, Answers, Plan, Serving, Setting, ask
from tuneline.evaluation.repeats.flips import flipped, view_of

# As many flipped prompts show whether a setting mends them; more only take time.
MOST = 8
_GREEDY = Setting("`top_k: 1` in each request", extra={"top_k": 1})
_ONE_SLOT = Setting("`deployment.parallel: 1`", parallel=1)
# A prompt's state may come from the cache of an earlier request, computed in other batches.
# https://github.com/ggml-org/llama.cpp/tree/master/tools/server: `cache_prompt`.
_NO_CACHE = Setting("`cache_prompt: false` in each request", extra={"cache_prompt": False})
# https://docs.vllm.ai/en/latest/features/batch_invariance/: kernels that sum in one order.
_INVARIANT = Setting(
    "`VLLM_BATCH_INVARIANT=1` for the server", environment={"VLLM_BATCH_INVARIANT": "1"}
)
# Cheap ones first: requests are easier to change than the number of slots.
_OF_ENGINE = {"llama_cpp": (_GREEDY, _NO_CACHE), "vllm": (_GREEDY, _INVARIANT)}


@dataclass(frozen=True)
class Tried:
    """A setting that was tried.

    Attributes:
        name: the setting.
        flipped: prompts that flipped with it; None if it could not be tried.
        prompts: prompts that were asked.
        why_not: why it could not be tried.
    """

    name: str
    flipped: int | None
    prompts: int
    why_not: str = ""


def settings_for(engine: str) -> tuple[Setting, ...]:
    """Return the settings that may mend an engine's answers, in the order of trial."""
    return (*_OF_ENGINE.get(engine, (_GREEDY,)), _ONE_SLOT)


def try_settings(
    serving: Serving,
    rows: Sequence[Row],
    flipping: Sequence[str],
    plan: Plan,
    *,
    engine: str,
    label_field: str | None,
    log: Callable[[str], None],
) -> list[Tried]:
    """Ask the prompts that flipped again, as configured and with each setting until one mends.

    Args:
        serving: starts a server with a setting.
        rows: all rows, for the batches.
        flipping: ids of the rows that flipped.
        plan: how they are asked.
        engine: name of the engine.
        label_field: the field of a JSON answer that holds the class.
        log: takes a line of progress.

    Returns:
        What was tried, first as configured; if nothing flips then, nothing else is tried.
    """
    chosen = [row for row in rows if row.row_id in set(flipping[:MOST])]
    tried: list[Tried] = []
    for setting in (AS_CONFIGURED, *settings_for(engine)):
        log(f"{len(chosen)} prompts flipped: trying {setting.name}")
        tried.append(_try(serving, rows, chosen, plan, setting=setting, label_field=label_field))
        if tried[-1].flipped == 0 or tried[0].flipped is None:
            break
    return tried


def _try(
    serving: Serving,
    rows: Sequence[Row],
    chosen: Sequence[Row],
    plan: Plan,
    *,
    setting: Setting,
    label_field: str | None,
) -> Tried:
    answers = Answers(chosen)
    try:
        ask(serving, rows, plan, answers, setting=setting)
    except TunelineError as error:
        return Tried(setting.name, None, len(chosen), first_line(error))
    again = flipped(answers.repeats(), view_of(label_field, answers.cut))
    return Tried(setting.name, len(again), len(chosen))


def mended_by(tried: Sequence[Tried]) -> str | None:
    """Return the setting that mended what came again without it, None if none did."""
    if not tried or not tried[0].flipped:
        return None
    return next((entry.name for entry in tried[1:] if entry.flipped == 0), None)


def sentence(tried: Sequence[Tried]) -> str:
    """Return what the trials showed, as a part of a sentence; empty if nothing was tried."""
    if not tried:
        return ""
    control, *others = tried
    if control.flipped is None:
        return f"no setting was tried, since the server failed ({control.why_not})"
    if control.flipped == 0:
        return "it did not come again in a second try, so that no setting can be shown to mend it"
    again = f"{control.flipped} of {control.prompts} flip again as configured"
    mended = mended_by(tried)
    if mended is not None:
        return f"{mended} mends it ({again}, none with it)"
    names = ", ".join(
        f"{entry.name} ({entry.why_not or f'{entry.flipped} still flip'})" for entry in others
    )
    return f"{again}, and no setting mends it: {names}"
