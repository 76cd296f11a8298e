"""The evidence of an item whose step raised or was killed: it fails and says why.

What the step had written by then is kept under `partial/`, where no later step looks for it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneline.errors import RetryableError, TunelineError, UserError, first_line
from tuneline.evidence import Evidence, measure
from tuneline.machine.redaction import redact

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

Kind = Literal["user_error", "retryable", "error", "killed"]

PARTIAL = "partial"
# Larger files are models half-way, which are no results and fill the store.
LARGEST_KEPT = 64 * 2**20
# The measurement that marks such evidence.
_MARK, _KIND = "step_errors", "step_error"
_BEGIN = "not measured to its end: "
_LONGEST = 700


def kind_of(error: BaseException) -> Kind:
    """Return the kind of an error, as in a termination message."""
    if isinstance(error, UserError):
        return "user_error"
    return "retryable" if isinstance(error, RetryableError) else "error"


def explain(error: BaseException) -> str:
    """Return why a step failed and what to do, in one line and without secrets."""
    if isinstance(error, TunelineError):
        return one_line(str(error))
    return one_line(
        f"the step broke with {type(error).__name__}: {first_line(error)}; its log has the "
        "traceback, correct what that names and run the step again"
    )


def one_line(text: str) -> str:
    """Return a text of any length as a line without secrets, cut where it is very long."""
    line = redact(" ".join(text.split())) or "no reason was given"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def ended_by_error(evidence: Evidence | None) -> bool:
    """Return True if the step raised or was killed, so that the item has no measurement."""
    return evidence is not None and any(m.name == _MARK for m in evidence.measurements)


def killed_before(evidence: Evidence | None, airflow: Mapping[str, Any] | None) -> str | None:
    """Return why the try before this one was killed; None if it was not, or there was none."""
    if evidence is None or evidence.airflow is None or airflow is None:
        return None
    before = {**airflow, "try_number": airflow["try_number"] - 1}
    killed = any(m.name == _KIND and m.value == "killed" for m in evidence.measurements)
    return evidence.summary.removeprefix(_BEGIN) if killed and evidence.airflow == before else None


def failed(ctx: StepContext, why: str, kind: Kind, instead: str = "") -> Evidence:
    """Make the evidence of a step that raised or was killed; its files lie below `partial/` by now.

    Args:
        instead: what later steps get in place of what the step did not leave.
    """
    kept = _files(ctx.out / PARTIAL)
    few = [*kept[:3], f"{len(kept) - 3} more"] if len(kept) > 4 else kept
    said = f"; partial results are kept: {', '.join(few)}" if kept else ""
    marks = [measure(_MARK, 1, "errors", "==", 0), measure(_KIND, kind, "kind")]
    return ctx.conclude(
        f"{_BEGIN}{why}{said}{instead and f'; instead {instead}'}",
        [*marks, measure("partial_files", len(kept), "files")],
    )


def set_partial(root: Path) -> None:
    """Move what a step has written below a folder of its own; drop halves of large files."""
    if not _files(root):
        return
    aside = root.with_name(f"{root.name}.{PARTIAL}")
    os.replace(root, aside)
    root.mkdir()
    os.replace(aside, root / PARTIAL)
    for name in _files(root / PARTIAL):
        path = root / PARTIAL / name
        if path.stat().st_size > LARGEST_KEPT:
            path.unlink()


def keep_partial_only(root: Path) -> None:
    """Remove what was written after `set_partial`."""
    for path in root.iterdir():
        if path.is_dir() and path.name != PARTIAL:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
