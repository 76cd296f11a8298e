"""Read the rows for `tuneline data show` from a raw file, a table, a prepared folder or a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlparse

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.data import DATASET, rejected_of, rows_of
from tuneline.catalogue import DATA_ORDER
from tuneline.config import PipelineConfig
from tuneline.data.prepare import read_config
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Message, Reject, Row, read_dataset, read_rejects, read_rows
from tuneline.errors import UserError
from tuneline.run import Run

# Rows of a raw file from which the form of a dataset's answers is judged.
SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Shown:
    """A row to print; `number` is that of `--row`."""

    number: int
    place: str
    messages: list[Message] = field(default_factory=list)
    facts: tuple[str, ...] = ()
    reject: Reject | None = None
    unscrubbed: bool = False
    served_by: str | None = None  # as in `Row`

    @classmethod
    def kept(cls, number: int, row: Row, weight: float = 1.0) -> Shown:
        """Show a row that is in."""
        facts = (row.split, row.label, f"weight {weight:.3g}" if weight != 1.0 else "")
        place, known = f"{row.source_file}:{row.source_line}", tuple(filter(None, facts))
        return cls(number, place, row.messages, known, None, bool(row.raw), row.served_by)

    @classmethod
    def rejected(cls, number: int, reject: Reject) -> Shown:
        """Show a row that a step took out."""
        return cls(number, f"{reject.source_file}:{reject.source_line}", reject=reject)


def gather(
    target: str,
    *,
    step: str | None,
    rejected: bool,
    row: int | None,
    base_model: str,
    config_file: Path | None,
) -> tuple[list[Shown], Renderer]:
    """Read the rows that a call asks for; UserError if there are none.

    `target` is a run's URI or folder, a folder that `data prepare` wrote, a table of a data step,
    or what `data.source` may name; base model and settings count for targets other than a run.
    `row` bounds how far a raw file is read.
    """
    if step is not None and step not in DATA_ORDER:
        raise UserError(f"--step {step} is not a data step; they are {', '.join(DATA_ORDER)}")
    path, run = local_path(target), run_of(target)
    if run is not None:
        with tables_of_run(run) as find:
            return _rows_of_steps(find, target, step, rejected=rejected), _renderer(run.config)
    config = read_config(target, base_model, config_file)
    renderer = _renderer(config)
    if path is not None and path.is_dir() and (path / DATASET.name).is_file():
        find = tables_of_folder(path)
        return _rows_of_steps(find, target, step, rejected=rejected), renderer
    if path is not None and path.suffix == ".parquet" and path.is_file():
        table = _rows_of_table(path)
        if table is not None:
            if rejected and any(shown.reject is None for shown in table):
                raise UserError(
                    f"{path} holds the rows that are in; rejected ones are in "
                    "quarantine/rejected.parquet"
                )
            return table, renderer
    if step is not None:
        raise UserError(f"--step {step} needs a run or a folder of `tuneline data prepare`")
    return _raw_rows(config, renderer, rejected=rejected, row=row), renderer


def run_of(target: str) -> Run | None:
    """Open the run that a URI or folder names (UserError if gone), None for another target."""
    path = local_path(target)
    if "/runs/" in target and (path is None or (path / "config.json").is_file()):
        return Run.open(target if path is None else path.resolve().as_uri())
    return None


def local_path(target: str) -> Path | None:
    """Return the path that a target names, None for an address on a server."""
    parsed = urlparse(target)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return None if "://" in target else Path(target).expanduser()


def _renderer(config: PipelineConfig) -> Renderer:
    from tuneline.models import load_tokenizer, resolve

    base = resolve(config.base_model, log=lambda _: None)
    return Renderer(load_tokenizer(base.path), config.data.target_format)


# Finds a table of a step on this machine; None if the step has not left it.
Find = Callable[[Artifact], Path | None]


@contextmanager
def tables_of_run(run: Run) -> Iterator[Find]:
    """Give a finder of the tables that the steps of a run left."""
    with tempfile.TemporaryDirectory() as scratch:

        def find(table: Artifact) -> Path | None:
            entry = run.find_evidence(table.step)
            if entry is None or all(ref.name != table.name for ref in entry.artifacts):
                return None
            path = Path(scratch) / table.step / table.name
            run.store.get_file(table.key(run), path)
            return path

        yield find


def tables_of_folder(folder: Path) -> Find:
    """Return a finder of the tables in a folder of `tuneline data prepare`."""

    def find(table: Artifact) -> Path | None:
        name = Path(table.name)
        path = folder / (name if table == DATASET else name.parent / table.step / name.name)
        return path if path.is_file() else None

    return find


def _rows_of_steps(find: Find, target: str, step: str | None, *, rejected: bool) -> list[Shown]:
    steps = (step,) if step else DATA_ORDER
    if rejected:
        paths = filter(None, (find(rejected_of(name)) for name in steps))
        rejects = (reject for path in paths for reject in read_rejects(path))
        return [Shown.rejected(number, reject) for number, reject in enumerate(rejects, 1)]
    for name in reversed(steps):
        path = find(rows_of(name))
        if path is not None:
            return _rows_of_table(path) or []
    raise UserError(f"{target}: {step or 'no data step'} has left no rows here")


def _rows_of_table(path: Path) -> list[Shown] | None:
    """Read a table that a data step wrote, None if it is another Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return None
    if {"row_id", "item", "reason", "raw"} <= names:
        return [Shown.rejected(number, one) for number, one in enumerate(read_rejects(path), 1)]
    if {"row_id", "messages", "weight"} <= names:
        rows, weights = read_dataset(path, holdout=True)
    elif {"row_id", "messages", "stand_ins"} <= names:
        rows = read_rows(path)
        weights = [1.0] * len(rows)
    else:
        return None
    return [Shown.kept(n, *pair) for n, pair in enumerate(zip(rows, weights, strict=True), 1)]


def _raw_rows(
    config: PipelineConfig, renderer: Renderer, *, rejected: bool, row: int | None
) -> list[Shown]:
    """Read rows of a raw file as schema_validation does; `--row` also takes a rejected one."""
    from tuneline.data.conversations.reading import Outcome, convert, left_out, number_repeats
    from tuneline.data.schema_validation import validate
    from tuneline.data.sources.records import open_files

    data = config.data
    most = max(SAMPLE_ROWS, row or 0)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        for opened in open_files(data, Path(scratch)):
            records = islice(opened.records(), most - len(outcomes))
            outcomes += convert(records, opened.file.name, data, own_holdout=False)[0]
            if len(outcomes) >= most:
                break
    for number, reason in left_out(outcomes, data.csv).items():
        outcomes[number].reason = reason
    number_repeats(outcomes)
    validate(outcomes, renderer, data)
    return [
        Shown.kept(o.source_line, o.row())
        if o.reason is None
        else Shown.rejected(o.source_line, o.reject())
        for o in outcomes
        if row is not None or (o.reason is not None) == rejected
    ]
