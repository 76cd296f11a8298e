"""`tuneline data prepare`: the data phase on one machine, without Airflow.

The results are laid out after the last step, the dataset last, so that a killed call leaves nothing
that looks complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tuneline.artifacts.data import (
    DATA_DOCS,
    DATASET,
    DATASET_CARD,
    DATASET_VERSION,
    REJECTED,
    audit_of,
    rejected_of,
)
from tuneline.catalogue import DATA_ORDER, Severity, get_item
from tuneline.config import DataConfig, PipelineConfig, build_config, check_sections, read_yaml
from tuneline.data.gates.run_gate import run_gate
from tuneline.data.tables.rows import join_rejects
from tuneline.errors import EXIT_FAILED, EXIT_OK, RetryableError, UserError
from tuneline.evidence import Evidence, Verdict, dump, worse
from tuneline.run import Run
from tuneline.step import execute
from tuneline.terminal import to_stderr
from tuneline.verdicts import checklist

SCHEMA = "tuneline/prepared/1"
RESULT = "result.json"
# These files of the final audit are also copied beside the dataset.
BESIDE = (DATASET_VERSION.name, DATASET_CARD.name)
WORK = ".work"
AUDIT_STEP = DATASET_VERSION.step


def prepare(
    source: str | list[str],
    base_model: str,
    out: Path,
    config_file: Path | None = None,
    *,
    preset: str | None = None,
    as_json: bool = False,
) -> int:
    """Prepare a dataset for training; return 0 if all critical items pass, 1 if one fails.

    `config_file` holds a whole configuration or its `data` section alone, above the preset.

    Raises:
        UserError: if the input or the configuration is wrong; nothing is written then.
        RetryableError: if a server or the disk failed.
    """
    config = read_config(source, base_model, config_file, preset)
    with _only_one(out):
        work = out / WORK
        shutil.rmtree(work, ignore_errors=True)
        try:
            run = Run.create((work / "store").resolve().as_uri(), "prepare", config, {})
            _run_steps(run, out)
            result = _result(run)
            _lay_out(run, out, work / "new", result)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    _report(result, as_json=as_json)
    return EXIT_FAILED if result["verdict"] == Verdict.FAIL else EXIT_OK


def read_config(
    source: str | list[str], base_model: str, config_file: Path | None, preset: str | None = None
) -> PipelineConfig:
    """Read a call's configuration; UserError if the file is missing, or a setting wrong."""
    where = str(config_file or "the configuration")
    document = read_yaml(config_file) if config_file is not None else {}
    if document and document.keys() <= DataConfig.model_fields.keys():
        document = {"data": document}
    check_sections(document, where)
    given = {"data": {"source": source}, "base_model": base_model}
    return build_config(document, given, preset=preset, where=where)


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the output folder; a second call on it is refused."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the results")
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{out} can't be written to: {error.strerror}; name another") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another call is writing to {out}; wait for it to end") from None
        try:
            yield
        finally:
            (out / ".lock").unlink(missing_ok=True)
            if not any(out.iterdir()):
                out.rmdir()


def _run_steps(run: Run, out: Path) -> None:
    """Run the five steps with their gates and the final audit."""
    import pyarrow.parquet as pq

    steps = len(DATA_ORDER) + 1
    for number, item in enumerate(DATA_ORDER, 1):
        to_stderr(f"{item} ({number} of {steps}) …")
        execute(item, run.uri)
        if number == 1:
            # The input and the base model are sound: the results of an earlier call are obsolete,
            # the dataset first.
            for name in (DATASET.name, *BESIDE, RESULT):
                (out / name).unlink(missing_ok=True)
            for name in (*DATA_ORDER, AUDIT_STEP, "quarantine", DATA_DOCS):
                shutil.rmtree(out / name, ignore_errors=True)
        run_gate(run, item)
        audit = _local(run, audit_of(item).key(run))
        if not audit.exists():
            to_stderr(f"{item} failed and left no rows; the steps after it are not run")
            return
        if not any(pq.read_table(audit, columns=["kept"])["kept"].to_pylist()):
            to_stderr(f"{item} kept no row; the steps after it are not run")
            return
    to_stderr(f"{AUDIT_STEP} ({steps} of {steps}) …")
    execute(AUDIT_STEP, run.uri)


def _local(run: Run, key: str) -> Path:
    """Return the path of an object in the working folder's store."""
    return Path(unquote(urlparse(run.store.uri).path)) / key


def _result(run: Run) -> dict[str, Any]:
    rows = {row.item: row for row in checklist(run)}
    items = [rows[item] for item in DATA_ORDER]
    verdict = Verdict.PASS
    for item in items:
        if item.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE):
            continue
        fails = item.verdict in (Verdict.FAIL, Verdict.NOT_RUN)
        critical = get_item(item.item).severity == Severity.CRITICAL
        verdict = worse(verdict, Verdict.FAIL if critical and fails else Verdict.WARN)
    document = DATASET_VERSION.find(run)
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "dataset": document and document.model_dump(include={"version", "rows", "splits"}),
        "items": [{key: str(value) for key, value in asdict(item).items()} for item in items],
    }


def _lay_out(run: Run, out: Path, new: Path, result: dict[str, Any]) -> None:
    """Move the run's files to their places in the output folder, the dataset last."""
    moved: dict[str, str] = {}
    try:
        tables = [_local(run, rejected_of(item).key(run)) for item in DATA_ORDER]
        join_rejects(new / "quarantine" / Path(REJECTED).name, [t for t in tables if t.exists()])
        for key in run.store.keys(run.prefix):
            first, *rest = Path(key.removeprefix(run.prefix + "/")).parts
            if first not in ("quarantine", "data"):
                continue
            place = Path("quarantine", *rest) if first == "quarantine" else Path(*rest)
            place = Path(place.name) if place.name == DATASET.name else place
            (new / place).parent.mkdir(parents=True, exist_ok=True)
            _local(run, key).rename(new / place)
            moved[run.store.uri_of(key)] = (out.resolve() / place).as_uri()
        _point_to(new, moved)
        for name in BESIDE:
            if (new / AUDIT_STEP / name).exists():
                shutil.copyfile(new / AUDIT_STEP / name, new / name)
        (new / RESULT).write_text(json.dumps(result, indent=1, ensure_ascii=False))
        for path in sorted(new.iterdir(), key=lambda path: path.name == DATASET.name):
            os.replace(path, out / path.name)
    except OSError as error:
        raise RetryableError(
            f"{out} can't be written to: {error.strerror}; free space there and run it again"
        ) from error


def _point_to(new: Path, moved: dict[str, str]) -> None:
    """Rewrite the addresses in evidence and gates to the new places."""
    for path in (p for n in ("evidence", "record", "gate") for p in new.glob(f"*/{n}.json")):
        document = json.loads(path.read_text())
        for ref in [*document.get("inputs", []), *document.get("artifacts", [])]:
            ref["uri"] = moved.get(ref["uri"], ref["uri"])
        if document.get("docs"):
            document["docs"] = moved.get(document["docs"])
        if path.name == "evidence.json":
            path.write_bytes(dump(Evidence.model_validate(document)))
        else:
            path.write_text(json.dumps(document, indent=1, ensure_ascii=False))


def _report(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
    for item in result["items"]:
        because = "" if item["verdict"] == Verdict.PASS else f" ({item['because']})"
        print(f"{item['item']:24} {item['verdict']:8} {item['summary']}{because}")
    if result["dataset"]:
        splits = ", ".join(f"{rows} {name}" for name, rows in result["dataset"]["splits"].items())
        print(f"dataset {result['dataset']['version'][:12]}: {splits} rows")
