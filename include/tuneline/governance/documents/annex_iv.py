"""The technical documentation of the EU AI Act (Annex IV), as far as the evidence tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

Sentences = Iterator[str]
# Of more changes the page gives the number by section; `tuneline diff` lists them.
_MOST_CHANGES = 30


def _version(facts: Facts) -> Sentences:
    manifest = facts.release.manifest
    yield f"The system is version {manifest.version} of {manifest.name}."
    before = manifest.previous_version
    yield f"It follows version {before}." if before else "No version was released before it."


def _interfaces(facts: Facts) -> Sentences:
    engine = facts.release.manifest.engine or {}
    if engine:
        yield (
            f"The model answers over HTTP, in the form of OpenAI's chat completions; it is served "
            f"by {engine.get('engine')} ({engine.get('version') or 'version not stated'}) behind "
            "Tuneline's gateway."
        )


def _software(facts: Facts) -> Sentences:
    for one in facts.release.manifest.environments:
        packages = ", ".join(f"{name} {version}" for name, version in sorted(one.packages.items()))
        yield f"Python {one.python} on {one.device}, for {', '.join(one.steps)}: {packages}."
    served = [line["name"] for line in facts.licenses if line.get("kind") == "package"]
    if served:
        yield f"Packages that serve it: {', '.join(served)}."


def _forms(facts: Facts) -> Sentences:
    for name, sha256 in sorted(facts.model_files.items()):
        yield f"The release holds {name} (SHA-256 {sha256})."


def _hardware(facts: Facts) -> Sentences:
    target = facts.config.get("deployment", {}).get("target_hardware")
    if target:
        yield f"The target hardware in the settings is {target}."


def _development(facts: Facts) -> Sentences:
    base = facts.release.manifest.base_model
    yield (
        f"A pre-trained model was used: {base.get('uri')}, revision {base.get('revision')}, "
        f"licence {base.get('license') or 'not stated'}, hash over its files {base.get('digest')}."
    )
    training = facts.release.manifest.hyperparameters
    stated = ("epochs", "learning_rate", "schedule", "effective_batch", "precision", "seed")
    values = [f"{name} {printed(training[name])}" for name in stated if name in training]
    if values:
        yield f"It was fine-tuned by LoRA on instruction data: {', '.join(values)}."
    code = facts.release.manifest.code
    yield f"The code that made it: commit {code.get('commit') or 'not known'} ({code.get('note')})."


def _design(facts: Facts) -> Sentences:
    lora = facts.release.manifest.hyperparameters.get("lora") or {}
    if lora.get("reason"):
        yield f"Adapter: {lora['reason']}."
    yield (
        "Training lowers the cross-entropy of the answers' tokens; the kept checkpoint is the one "
        "with the lowest validation loss."
    )


def _resources(facts: Facts) -> Sentences:
    plan = facts.release.manifest.hyperparameters.get("plan") or {}
    estimate = plan.get("estimate") or {}
    if estimate:
        work = estimate.get("work") or {}
        yield (
            f"Training was planned with {work.get('steps')} steps over {work.get('tokens')} tokens "
            f"on {plan.get('device')}, {printed(estimate.get('device_hours'))} device-hours."
        )
    for one in facts.items.values():
        if one.evidence is not None and one.item.gpu:
            device = one.evidence.environment.get("device", "a device that is not stated")
            yield f"{one.item.id} ran for {printed(one.evidence.seconds)} s on {device}."


def _data(facts: Facts) -> Sentences:
    data = facts.dataset
    splits = ", ".join(f"{count} {name}" for name, count in (data.get("splits") or {}).items())
    yield f"The dataset has version {data.get('version')} and {data.get('rows')} rows ({splits})."
    for source in data.get("sources") or []:
        yield (
            f"Source {source['name']}: licence {source.get('license') or 'not declared'}, SHA-256 "
            f"{source['sha256']}, {source.get('records_kept')} of {source.get('records')} records "
            "kept."
        )
    for step in data.get("removed") or []:
        if step["rows"]:
            reasons = ", ".join(f"{reason} {rows}" for reason, rows in step["reasons"].items())
            yield f"{step['item']} took out {step['rows']} rows: {reasons}."
    if facts.release.find("dataset_card.md"):
        yield "The data sheet is dataset_card.md."


def _testing(facts: Facts) -> Sentences:
    splits = facts.dataset.get("splits") or {}
    if splits:
        yield (
            f"The dataset has {splits.get('holdout')} hold-out rows and "
            f"{splits.get('validation')} validation rows."
        )
    yield (
        "Each item's evidence has its time, its inputs by hash and its environment; attestations/ "
        "states each verdict as an in-toto statement."
    )


def _integrity(facts: Facts) -> Sentences:
    yield "Every file of the release is stated by SHA-256; `tuneline verify` recomputes them."
    signature = facts.release.manifest.signature
    if signature:
        yield f"The release is signed: {signature.get('format')}."
    else:
        yield "The release is not signed."


def _input(facts: Facts) -> Sentences:
    limit = facts.config.get("data", {}).get("max_tokens")
    if limit:
        yield f"Rows of the dataset have at most {limit} tokens (data.max_tokens)."


def _metric(facts: Facts) -> Sentences:
    one = facts.items["holdout_performance"]
    if one.value("metric"):
        yield f"The metric is {one.value('metric')}: {one.value('metric_chosen_because')}."


def _changes(facts: Facts) -> Sentences:
    manifest = facts.release.manifest
    if manifest.parent is None:
        yield "No version was released before it."
        return
    before = find_version(facts.release.store, manifest.name, manifest.parent.version)
    if before is None:
        yield f"Version {manifest.parent.version}, which came before it, is no longer kept."
        return
    found = [c for c in changes(before, facts.release) if c.section not in ("verdicts", "metrics")]
    yield f"{len(found)} values differ from version {before.version}."
    for change in found[:_MOST_CHANGES]:
        yield f"{change.section} {change.name}: {_shown(change.before)} → {_shown(change.after)}"
    if len(found) > _MOST_CHANGES:
        yield f"`tuneline diff` lists the other {len(found) - _MOST_CHANGES}."


def _shown(value: Any) -> str:
    return "–" if value is None else printed(value)


def _specifications(facts: Facts) -> Sentences:
    yield (
        "Technical specifications used: in-toto attestation framework 1, SLSA provenance 1, "
        "CycloneDX 1.7 (ECMA-424), SPDX licence expressions."
    )
    if facts.release.manifest.signature:
        yield "OpenSSF Model Signing 1.0 and DSSE 1.0."


FACTS: dict[str, Callable[[Facts], Sentences]] = {
    "version": _version,
    "interfaces": _interfaces,
    "software": _software,
    "forms": _forms,
    "hardware": _hardware,
    "development": _development,
    "design": _design,
    "resources": _resources,
    "data": _data,
    "testing": _testing,
    "integrity": _integrity,
    "input": _input,
    "metric": _metric,
    "changes": _changes,
    "specifications": _specifications,
}


ANNEX_FILE = "annex_iv.md"
_POINTS = Path(__file__).with_name("annex_iv.yaml")
# Broken limits are all shown; of the others as many as fill the list. The evidence has all.
_SHOWN = 6


class Point(BaseModel):
    """One point of the annex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    point: str  # such as `2(d)`
    text: str
    facts: list[str] = []  # names of what the manifest tells, see `FACTS`
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


def answers(facts: Facts, declared: Mapping[str, str]) -> list[Answer]:
    """Return what a release tells of each point that asks for something."""
    return [_answer(point, facts, declared) for point in points() if not point.heading]


def annex_iv(facts: Facts, declared: Mapping[str, str] | None = None) -> str:
    """Write the page, in Markdown."""
    settings = facts.config.get("governance", {}).get("annex_iv") or {}
    found = answers(facts, {**settings, **(declared or {})})
    return render(
        "tuneline.governance.documents",
        "annex_iv.jinja",
        manifest=facts.release.manifest,
        answers={answer.point.point: answer for answer in found},
        points=points(),
        missing=[a for a in found if a.state == "missing"],
        unmeasured=sorted({name for a in found for name in a.unmeasured}),
        items=ITEMS,
        unstated=UNSTATED,
        where={item.id: _where(item.id) for item in ITEMS},
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


def _answer(point: Point, facts: Facts, declared: Mapping[str, str]) -> Answer:
    items = [facts.items[name] for name in point.items if name != UNSTATED]
    return Answer(
        point,
        [sentence for name in point.facts for sentence in FACTS[name](facts)],
        items,
        declared.get(point.point, "").splitlines(),
        [one.item.id for one in items if not one.measured],
    )


def _where(item: str) -> list[str]:
    return [point.point for point in points() if item in point.items]


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
    value = printed(m.value)
    return f"{m.name} {value}{_unit(m.unit)} (limit {m.rule} {limit})"


def _unit(unit: str) -> str:
    return "" if unit in ("", "flag") else f" {unit}"
