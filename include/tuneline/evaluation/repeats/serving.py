"""Servers of the shipped bytes for repeated prompts, with a setting changed, and their tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tuneline.artifacts.training import MERGED
from tuneline.evaluation.repeats.asking import Setting
from tuneline.harness.served_models import scoring_threads, serve
from tuneline.serving.client.client import EngineClient
from tuneline.serving.engines.base import ServedModel
from tuneline.step_context import StepContext


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def serving(
    ctx: StepContext, model: ServedModel, parallel: int, setting: Setting
) -> Iterator[EngineClient]:
    """Serve a model with a setting, and give a client of the server."""
    slots = setting.parallel or parallel
    threads = scoring_threads()
    with (
        _variables(setting.environment),
        serve(model, ctx.config.deployment, threads=threads, parallel=slots) as server,
        server.client() as client,
    ):
        yield client


def tokens_of(ctx: StepContext) -> Callable[[str], list[str]]:
    """Return a function that splits an answer into its tokens."""
    from tuneline.models.base_model import load_tokenizer

    tokenizer = load_tokenizer(MERGED.fetch(ctx))

    def split(text: str) -> list[str]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [tokenizer.decode([token]) for token in ids]

    return split
