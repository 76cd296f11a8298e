"""What licences ask for: files of a release (NOTICE, LICENSES.md), the question to a person."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneline.artifacts.governance import (
    AUDITED,
    ENGINE_PACKAGES,
    LICENSE_TEXTS,
    LICENSES,
    NOTICE,
    AskedLicense,
)
from tuneline.artifacts.training import BASE, StoredBase
from tuneline.bases import directory_of
from tuneline.config import PipelineConfig
from tuneline.errors import TunelineError, UserError
from tuneline.licenses.findings import Finding
from tuneline.licenses.rules import Rule, duties_of, table
from tuneline.machine.markdown import escaped, fenced
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import open_store

_TITLES = {
    "base_model": "Base model",
    "dataset": "Data",
    "generator": "Model that wrote answers of the data",
    "detector": "Model that finds personal data",
    "package": "Package of the engine's image",
}
_TEXT_FILES = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")


def write_duties(ctx: StepContext, findings: Sequence[Finding], base: Path) -> int:
    """Write the files; return the number of duties that people have to see to."""
    names = {p.name for pattern in _TEXT_FILES for p in base.glob(pattern) if p.is_file()}
    folder, texts = ctx.out / LICENSE_TEXTS, sorted(names)
    for name in texts:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, folder / name)
    NOTICE.path(ctx).write_text(notice_text(ctx.config, findings), encoding="utf-8")
    document = licenses_text(ctx.config, findings, texts)
    LICENSES.path(ctx).write_text(document, encoding="utf-8")
    return document.count("\n- [ ] ")


def notice_text(config: PipelineConfig, findings: Sequence[Finding]) -> str:
    """Return the file NOTICE: what the model was made from, and the lines that licences ask for."""
    lines = [
        f"{config.name}",
        "",
        f"This model was made from {config.base_model} by fine-tuning; its weights were changed.",
        "",
    ]
    for finding in findings:
        lines.append(f"{_TITLES[finding.kind]}: {finding.name} ({finding.license})")
    notices = dict.fromkeys(r.notice for f in findings for r in f.rules.values() if r.notice)
    rules = (rule for finding in findings for rule in finding.rules.values())
    shown = dict.fromkeys(filter(None, (_shown(rule, config) for rule in rules)))
    lines += ["", *(line for line in notices if line), *shown]
    return "\n".join(lines).strip() + "\n"


def licenses_text(config: PipelineConfig, findings: Sequence[Finding], texts: Sequence[str]) -> str:
    """Return LICENSES.md: each licence, its text or address, and what people have to do."""
    parts = [
        f"# Licences of {config.name}",
        f"Judged for {config.governance.intended_use} use by the rules of {table().as_of}. The "
        "rules are a summary for a gate and not legal advice. Boxes are duties that files can't "
        "fulfil.",
    ]
    for finding in findings:
        lines = [f"## {_TITLES[finding.kind]}: {finding.name}", ""]
        lines.append(f"- licence: {finding.license}, read from {finding.read_from}")
        decision = f"{finding.decision}: {finding.rule}"
        if finding.open_but_accepted:
            by = f"accepted by {finding.accepted_by}: {finding.reason}"
            decision = f"{by} (the rules: {finding.rule})"
        lines.append(f"- decision: {decision}")
        if finding.kind == "base_model" and texts:
            lines.append("- text: " + ", ".join(f"`{LICENSE_TEXTS}/{name}`" for name in texts))
        lines += [f"- {name}: {rule.source}" for name, rule in finding.rules.items()]
        if finding.text and not finding.rules:
            lines.append(f"- page: {finding.text}")
        for rule in finding.rules.values():
            if words := _shown(rule, config):
                lines.append(f"- [ ] show “{words}” in the product or its documentation")
            lines += [f"- [ ] {duty}" for duty in duties_of(rule)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _shown(rule: Rule, config: PipelineConfig) -> str | None:
    """Return the words that a licence wants to be shown, with the model's name in them."""
    return rule.display.replace("{name}", config.name) if rule.display else None


def license_files(ctx: StepContext) -> dict[str, Path]:
    """Fetch the files that ship for the sake of licences: local file by name in the release.

    A run whose audit left none, since it ended with an error, ships none; the checklist says so.
    """
    files = {}
    for step, names in (
        (LICENSES.step, (AUDITED.name, NOTICE.name, LICENSES.name)),
        (ENGINE_PACKAGES.step, (ENGINE_PACKAGES.name,)),
    ):
        try:
            artifacts = ctx.entry(step).artifacts
        except UserError:
            continue
        for ref in artifacts:
            if ref.name in names or ref.name.startswith(f"{LICENSE_TEXTS}/"):
                files[ref.name] = ctx.input(step, ref.name)
    return files


# As much of a text as a form can show; the address leads to the rest.
_CHARACTERS = 6000


def question_text(run: Run, asked: Sequence[AskedLicense]) -> str:
    """Render what a person has to know who decides on licences."""
    governance = run.config.governance
    lines = [
        "The rules of this project do not decide whether these licences allow the use. Approve "
        "if you have read them and they do, and say why; reject to stop the run.",
        f"**Intended use**: {escaped(governance.intended_use)}. "
        f"**Model**: {escaped(run.config.name)}. **Run**: {escaped(run.uri)}",
    ]
    for licence in asked:
        lines += [
            f"### {_TITLES[licence.kind]}: {escaped(licence.name)}",
            f"- licence: {escaped(licence.license)}\n- why you are asked: {escaped(licence.why)}\n"
            f"- text: {escaped(licence.text or 'no address is known; ask whoever provided it')}",
        ]
        if licence.kind == "base_model":
            lines += _base_texts(run)
    return "\n\n".join(lines)


def _base_texts(run: Run) -> list[str]:
    """Return the licence files of the base model, none of whose words is read as markup."""
    base = BASE.find(run)
    if base is None:
        return []
    names = sorted(name for name in base.files if name.upper().startswith(("LICEN", "USE_POLICY")))
    return [f"{escaped(name)}:\n\n{fenced(_read(base, name))}" for name in names]


def _read(base: StoredBase, name: str) -> str:
    try:
        directory = directory_of(base.place)
        if directory is not None:
            raw = (directory / name).read_bytes()
        else:
            root, _, key = base.place.rpartition("/bases/")
            raw = open_store(root).get_bytes(f"bases/{key}/{name}")
    except (OSError, TunelineError) as error:
        # The question can be answered from its address as well.
        return f"(it can't be read here: {error})"
    text = raw.decode("utf-8", errors="replace")
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}\n… (cut off here)"
