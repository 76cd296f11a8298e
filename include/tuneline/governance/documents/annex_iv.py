"""The technical documentation of the EU AI Act (Annex IV), as far as the evidence tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from tuneline.artifacts.releases import find_version
from tuneline.catalogue import ITEMS
from tuneline.config.governance import require_points
from tuneline.errors import UserError, first_line
from tuneline.evidence import Measurement
from tuneline.governance.documents.facts import UNSTATED, Facts, ItemFacts
from tuneline.governance.release.compare import changes
from tuneline.machine.markdown import printed, render

_PACKAGE = "tuneline.governance.documents"
ANNEX_FILE = "annex_iv.md"
_POINTS = Path(__file__).with_name("annex_iv.yaml")
# Broken limits are all shown; of the others as many as fill the list. The evidence has all.
_SHOWN = 6


class Point(BaseModel):
    """One point of the annex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    point: str  # such as `2(d)`
    text: str
    facts: list[str] = []  # names of what the manifest tells, see `told`
    items: list[str] = []  # whose evidence answers it
    missing: str = ""  # what neither tells

    @property
    def heading(self) -> bool:
        """True if the point only introduces its letters."""
        return not (self.facts or self.items or self.missing)


@dataclass(frozen=True)
class Answer:
    """What a release tells of one point."""

    point: Point
    facts: list[str] = field(default_factory=list)
    items: list[ItemFacts] = field(default_factory=list)  # without `lineage`
    declared: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)  # items without a measurement

    @property
    def state(self) -> str:
        """How far the point is answered, in a word or three."""
        if self.declared:
            return "declared by the provider" if not self.items else "evidence and declared"
        told = self.facts or any(one.measured for one in self.items)
        if not self.point.missing and not self.unmeasured:
            return "from evidence"
        return "in part" if told else "missing"


@cache
def points() -> tuple[Point, ...]:
    """Return the points of the annex, in their order."""
    document = yaml.safe_load(_POINTS.read_text(encoding="utf-8"))
    return tuple(Point.model_validate(entry) for entry in document)


def told(facts: Facts) -> dict[str, list[str]]:
    """Return the sentences of what the manifest tells, escaped, by their names in the table."""
    manifest, before = facts.release.manifest, None
    if manifest.parent is not None:
        before = find_version(facts.release.store, manifest.name, manifest.parent.version)
    found = changes(before, facts.release) if before else []
    text = render(
        _PACKAGE,
        "annex_iv_facts.jinja",
        manifest=manifest,
        facts=facts,
        before=before,
        changes=[c for c in found if c.section not in ("verdicts", "metrics")],
    )
    blocks = (block.splitlines() for block in f"\n{text}".split("\n|")[1:])
    return {name: list(filter(None, sentences)) for name, *sentences in blocks}


def answers(facts: Facts, declared: Mapping[str, str]) -> list[Answer]:
    """Return what a release tells of each point that asks for something."""
    sentences = told(facts)
    return [
        Answer(
            point,
            [sentence for name in point.facts for sentence in sentences[name]],
            items := [facts.items[name] for name in point.items if name != UNSTATED],
            declared.get(point.point, "").splitlines(),
            [one.item.id for one in items if not one.measured],
        )
        for point in points()
        if not point.heading
    ]


def annex_iv(facts: Facts, declared: Mapping[str, str] | None = None) -> str:
    """Write the page, in Markdown."""
    settings = facts.config.get("governance", {}).get("annex_iv") or {}
    found = answers(facts, {**settings, **(declared or {})})
    return render(
        _PACKAGE,
        "annex_iv.jinja",
        manifest=facts.release.manifest,
        answers={answer.point.point: answer for answer in found},
        points=points(),
        missing=[a for a in found if a.state == "missing"],
        unmeasured=sorted({name for a in found for name in a.unmeasured}),
        items=ITEMS,
        unstated=UNSTATED,
        where={i.id: [p.point for p in points() if i.id in p.items] for i in ITEMS},
        numbers=deciding_numbers,
        verdict_of=lambda item: facts.items[item].verdict if item in facts.items else "–",
    )


def read_texts(path: Path) -> dict[str, str]:
    """Return what a provider declares: a YAML file with a text by point."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read: {first_line(error)}") from None
    if not isinstance(document, dict):
        raise UserError(
            f"{path} holds no texts by point; write lines like `1(a): The purpose is …`"
        )
    texts = {str(point): text for point, text in document.items()}
    wrong = next((point for point, text in texts.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(f"{path}: {wrong} must be a string; quote it")
    try:
        require_points(texts)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return texts


def deciding_numbers(one: ItemFacts) -> list[str]:
    """Return the numbers that decided an item, the broken limits first."""
    broken = [m for m in one.deciding if m.ok is False]
    held = [m for m in one.deciding if m.ok is not False]
    shown = [*broken, *held[: max(0, _SHOWN - len(broken))]]
    lines = [f"{_sentence(m)}{': broken' if m.ok is False else ''}" for m in shown]
    left = len(one.deciding) - len(shown)
    return [*lines, f"{left} more limits hold"] if left else lines


def _sentence(m: Measurement) -> str:
    limit: Any = printed(m.limit) if not isinstance(m.limit, bool) else str(m.limit).lower()
    unit = "" if m.unit in ("", "flag") else f" {m.unit}"
    return f"{m.name} {printed(m.value)}{unit} (limit {m.rule} {limit})"
