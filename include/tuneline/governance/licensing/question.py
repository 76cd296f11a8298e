"""The question to a person about licences that the rules leave open, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.artifacts.base_model import BASE, StoredBase
from tuneline.artifacts.licenses import AskedLicense
from tuneline.bases.shelf import directory_of
from tuneline.errors import TunelineError
from tuneline.machine.markdown import escaped, fenced
from tuneline.run import Run
from tuneline.store import open_store

# As much of a text as a form can show; the address leads to the rest.
_CHARACTERS = 6000
_TITLES = {
    "base_model": "The base model",
    "dataset": "Data",
    "generator": "The model that wrote answers of the data",
    "package": "A package of the engine's image",
}


def question_text(run: Run, asked: Sequence[AskedLicense]) -> str:
    """Render what a person has to know who decides on licences.

    Args:
        run: the run.
        asked: the licences.
    """
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
            lines += _texts(run)
    return "\n\n".join(lines)


def _texts(run: Run) -> list[str]:
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
