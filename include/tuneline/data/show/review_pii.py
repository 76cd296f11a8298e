"""`tuneline data review-pii`: draw scrubbed rows for a person, and read what the person found."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tuneline.artifacts.data import SCRUBBED
from tuneline.config import DataConfig
from tuneline.data.pii.review import review as reviews
from tuneline.data.show.rows import local_path, run_of, tables_of_folder, tables_of_run
from tuneline.data.tables.rows import Row, read_rows
from tuneline.errors import EXIT_OK, UserError
from tuneline.evidence import Evidence, load_evidence


@dataclass(frozen=True)
class _Scrubbed:
    """The rows that pii_scrubbing kept, its evidence, and the settings of the data phase."""

    rows: list[Row]
    evidence: Evidence
    config: DataConfig


def write(target: str, out: Path, count: int) -> int:
    """Write a sheet of scrubbed rows for a person to fill; UserError if there are none."""
    if count < 1:
        raise UserError(f"--rows {count}: draw at least one row")
    if out.suffix != ".csv":
        raise UserError(f"--out {out}: name a .csv file")
    drawn = reviews.draw_rows(_read(target).rows, count)
    try:
        out.write_bytes(reviews.as_csv(drawn))
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}") from None
    strata = Counter(row.stratum for row in drawn)
    shares = ", ".join(f"{size} {name}" for name, size in strata.items())
    print(
        f"{out}: {len(drawn)} rows ({shares}). Write into the column missed `none`, or each piece "
        "that is left as `TYPE: text`, several with `|` between them."
    )
    return EXIT_OK


def read(target: str, labels: str, *, as_json: bool = False) -> int:
    """Check a filled sheet and print its estimate; UserError if unfilled, or of other rows."""
    found = _read(target)
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        review = reviews.read_review(labels, found.rows, Path(scratch))
    if not review.weights:
        raise UserError(
            f"{labels}: {review.foreign} of its rows are not those that {target} would draw, so it "
            "says nothing about this data; draw and fill a new sheet"
        )
    measurements = reviews.review_measurements(review, len(found.rows), found.config)
    if as_json:
        entries = [entry.model_dump(mode="json") for entry in measurements]
        print(json.dumps(entries, indent=1, ensure_ascii=False))
        return EXIT_OK
    for entry in measurements:
        broken = f"  more than {entry.limit}" if entry.ok is False else ""
        print(f"{entry.name:40} {entry.value} {entry.unit}{broken}")
    print(f"data.pii_review: {labels} puts it into the evidence of the next run", file=sys.stderr)
    return EXIT_OK


def _read(target: str) -> _Scrubbed:
    run = run_of(target)
    if run is not None:
        entry = run.find_evidence(SCRUBBED.step)
        with tables_of_run(run) as find:
            path = find(SCRUBBED)
            if path is not None and entry is not None:
                return _Scrubbed(read_rows(path), entry, run.config.data)
        raise UserError(f"{SCRUBBED.step} has not been run in {target}; run it first")
    folder = local_path(target)
    path = tables_of_folder(folder)(SCRUBBED) if folder is not None and folder.is_dir() else None
    evidence = (folder or Path()) / SCRUBBED.step / "evidence.json"
    if path is None or not evidence.is_file():
        raise UserError(
            f"{target} is neither a run nor a folder of `tuneline data prepare` with scrubbed rows"
        )
    entry = load_evidence(evidence.read_bytes(), str(evidence))
    # The settings that matter here, as the evidence states them.
    profiles = next(str(m.value) for m in entry.measurements if m.name == "profiles").split("+")
    config = DataConfig.model_validate({"source": "rows", "pii_profile": profiles})
    return _Scrubbed(read_rows(path), entry, config)
