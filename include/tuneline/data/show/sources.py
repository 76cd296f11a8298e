"""Where `tuneline data show` finds rows: a raw file, a table of a data step, a folder, a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlparse

from tuneline.catalogue import DATA_ORDER
from tuneline.config import PipelineConfig
from tuneline.data.prepare import read_config
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import (
    DATASET,
    REJECTED,
    ROWS,
    UNSCRUBBED,
    Message,
    Reject,
    Row,
    read_dataset,
    read_rejects,
    read_rows,
)
from tuneline.errors import UserError
from tuneline.run import Run

# What a dataset's answers have in common is judged on so many rows of a raw file.
SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Shown:
    """A row to print.

    Attributes:
        number: what `--row` calls it.
        place: file and line.
        messages: its turns; None for a row that was rejected.
        facts: what else is known: split, label, weight.
        item: the item that rejected it.
        reason: why, None for a row that is in.
        raw: the source line of a rejected row.
        unscrubbed: whether it may hold personal data.
    """

    number: int
    place: str
    messages: list[Message] | None = None
    facts: tuple[str, ...] = ()
    item: str = ""
    reason: str | None = None
    raw: str = ""
    unscrubbed: bool = False


@dataclass(frozen=True)
class Source:
    """Rows with what renders them; `step` is the step that they come from, empty for a file."""

    rows: list[Shown]
    renderer: Renderer
    step: str = ""


def gather(
    target: str,
    *,
    step: str | None,
    rejected: bool,
    row: int | None,
    base_model: str,
    config_file: Path | None,
) -> Source:
    """Read the rows that a call asks for.

    Args:
        target: a run's URI or folder, a folder that `data prepare` wrote, a table of a data step,
            or anything that `data.source` may name.
        step: the data step whose rows to take; None for the last one that left some.
        rejected: take rejected rows instead.
        row: the row that is wanted; of a raw file no more is read than it takes.
        base_model: for what is no run.
        config_file: settings, for what is no run.

    Raises:
        UserError: there is nothing of the kind there.
    """
    if step is not None and step not in DATA_ORDER:
        raise UserError(f"--step {step}: no data step; they are {', '.join(DATA_ORDER)}")
    path = _local(target)
    if "/runs/" in target and (path is None or (path / "config.json").is_file()):
        run = Run.open(target if path is None else path.resolve().as_uri())
        renderer = _renderer(run.config)
        with tempfile.TemporaryDirectory() as scratch:
            if rejected:
                return Source(_rejects_of_run(run, step, Path(scratch)), renderer, step or "")
            return _rows_of_run(run, step, Path(scratch), renderer)
    config = read_config(target, base_model, config_file)
    renderer = _renderer(config)
    if path is not None and path.is_dir() and (path / DATASET).is_file():
        return _of_folder(path, step, rejected, renderer)
    if path is not None and path.suffix == ".parquet" and path.is_file():
        table = _table(path, rejected=rejected)
        if table is not None:
            return Source(table, renderer)
    if step is not None:
        raise UserError(f"--step {step} needs a run or a folder of `tuneline data prepare`")
    return Source(_raw_rows(config, renderer, rejected=rejected, row=row), renderer)


def _local(target: str) -> Path | None:
    parsed = urlparse(target)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return None if "://" in target else Path(target).expanduser()


def _renderer(config: PipelineConfig) -> Renderer:
    from tuneline.models import load_tokenizer, resolve

    base = resolve(config.base_model, log=lambda _: None)
    return Renderer(load_tokenizer(base.path), config.data.target_format)


def _name_of(step: str) -> str:
    names = {"schema_validation": UNSCRUBBED, "distribution_balancing": DATASET}
    return names.get(step, ROWS)


@contextmanager
def _artifact(run: Run, step: str, name: str, scratch: Path) -> Iterator[Path | None]:
    """A stored table of a step; None when the step has none."""
    found = run.find_evidence(step)
    ref = next((r for r in found.artifacts if r.name == name), None) if found else None
    if ref is None:
        yield None
        return
    path = scratch / step / Path(name).name
    run.store.get_file(run.store.key_of(ref.uri), path)
    yield path
    path.unlink()


def _rows_of_run(run: Run, step: str | None, scratch: Path, renderer: Renderer) -> Source:
    for name in [step] if step else DATA_ORDER[::-1]:
        with _artifact(run, name, _name_of(name), scratch) as path:
            if path is not None:
                return Source(_table(path, rejected=False) or [], renderer, name)
    raise UserError(f"{run.uri}: {step or 'no data step'} has left no rows yet")


def _rejects_of_run(run: Run, step: str | None, scratch: Path) -> list[Shown]:
    rejects: list[Reject] = []
    for name in [step] if step else DATA_ORDER:
        with _artifact(run, name, REJECTED, scratch) as path:
            rejects += read_rejects(path) if path is not None else []
    return [_reject(number, reject) for number, reject in enumerate(rejects, 1)]


def _of_folder(folder: Path, step: str | None, rejected: bool, renderer: Renderer) -> Source:
    if rejected:
        path = folder / "quarantine" / Path(REJECTED).name
        found = [r for r in read_rejects(path) if step in (None, r.item)] if path.exists() else []
        return Source([_reject(n, r) for n, r in enumerate(found, 1)], renderer, step or "")
    if step in (None, "distribution_balancing"):
        path = folder / DATASET
    elif step == "schema_validation":
        path = folder / "quarantine" / step / Path(UNSCRUBBED).name
    else:
        path = folder / str(step) / ROWS
    if not path.is_file():
        raise UserError(f"{folder} holds no rows of {step}; look into the run, or at another step")
    return Source(_table(path, rejected=False) or [], renderer, step or "distribution_balancing")


def _table(path: Path, *, rejected: bool) -> list[Shown] | None:
    """The rows of a table that a data step wrote, None when it is another Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return None
    if {"row_id", "item", "reason", "raw"} <= names:
        return [_reject(number, reject) for number, reject in enumerate(read_rejects(path), 1)]
    if {"row_id", "messages", "weight"} <= names:
        rows, weights = read_dataset(path)
    elif {"row_id", "messages", "stand_ins"} <= names:
        rows = read_rows(path)
        weights = [1.0] * len(rows)
    else:
        return None
    if rejected:
        raise UserError(
            f"{path} holds the rows that are in; rejected ones lie in quarantine/rejected.parquet"
        )
    return [
        _row(n, row, weight) for n, (row, weight) in enumerate(zip(rows, weights, strict=True), 1)
    ]


def _row(number: int, row: Row, weight: float = 1.0) -> Shown:
    facts = [row.split, row.label or ""]
    if weight != 1.0:
        facts.append(f"weight {weight:.3g}")
    return Shown(
        number,
        f"{row.source_file}:{row.source_line}",
        row.messages,
        tuple(filter(None, facts)),
        unscrubbed=bool(row.raw),
    )


def _reject(number: int, reject: Reject) -> Shown:
    place = f"{reject.source_file}:{reject.source_line}"
    return Shown(
        number, place, item=reject.item, reason=reject.reason, raw=reject.raw, unscrubbed=True
    )


def _raw_rows(
    config: PipelineConfig, renderer: Renderer, *, rejected: bool, row: int | None
) -> list[Shown]:
    """Rows of a raw file as schema validation takes them."""
    from tuneline.data.conversations.outcomes import Outcome, convert, number_repeats, select
    from tuneline.data.schema_validation import ITEM, validate
    from tuneline.data.sources.opened import open_files

    data = config.data
    most = max(SAMPLE_ROWS, row or 0)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        for opened in open_files(data, Path(scratch)):
            records = islice(opened.records(data.csv), most - len(outcomes))
            outcomes += convert(records, opened.file.name, data, own_holdout=False)[0]
            if len(outcomes) >= most:
                break
    select(outcomes, data.csv)
    number_repeats(outcomes)
    validate(outcomes, renderer, data)
    shown = []
    for outcome in outcomes:
        place = f"{outcome.source_file}:{outcome.source_line}"
        label = (outcome.label,) if outcome.label else ()
        kept = Shown(outcome.source_line, place, outcome.messages, label, unscrubbed=True)
        if outcome.reason is not None:
            kept = Shown(
                outcome.source_line,
                place,
                item=ITEM,
                reason=outcome.reason,
                raw=outcome.raw,
                unscrubbed=True,
            )
        # A row that is asked for is shown whatever became of it.
        if row is not None or (outcome.reason is not None) == rejected:
            shown.append(kept)
    return shown
