"""`tuneline logs`: curate production requests, have them reviewed, and read the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import Commands, add_json_argument, add_store_argument, store_uri
from tuneline.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from tuneline.store import Store


def add_logs(commands: Commands) -> None:
    """Add `tuneline logs` and its actions."""
    logs = commands.add_parser("logs", help="curate and review the requests of production")
    actions = logs.add_subparsers(required=True, metavar="ACTION")
    _add_curate(actions)
    drift = _add_action(actions, "drift", "compare the days since the last look with training data")
    drift.add_argument("--until", required=True, metavar="YYYY-MM-DD", help="last day, UTC")
    _add_config(drift)
    add_json_argument(drift, "print the report as JSON")
    drift.set_defaults(command=_drift)
    review = _add_action(actions, "review", "write the rows that wait for a person's decision")
    review.add_argument("--days", metavar="A..B", help="days from A to B, or one day (all)")
    review.add_argument("--out", type=Path, metavar="FILE", help=".csv or .jsonl; JSONL to stdout")
    review.set_defaults(command=_review)
    label = _add_action(actions, "label", "check and store a file of labels")
    label.add_argument("file", type=Path, metavar="FILE", help="CSV or JSON lines")
    label.add_argument("--by", required=True, metavar="NAME", help="the person who labelled")
    label.set_defaults(command=_label)
    answers = _add_action(
        actions, "answers", "scrub and store the labels that people gave in Airflow"
    )
    answers.add_argument("--name", required=True, help="name that they were put aside by")
    answers.set_defaults(command=_answers)
    reviewed = _add_action(actions, "reviewed", "write accepted and corrected rows as a dataset")
    reviewed.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSONL to write")
    add_json_argument(reviewed)
    reviewed.set_defaults(command=_reviewed)
    status = _add_action(actions, "status", "count days, open and reviewed rows")
    add_json_argument(status)
    status.set_defaults(command=_status)


def _add_action(actions: Commands, name: str, text: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text)
    add_store_argument(action)
    action.add_argument("--model", required=True, metavar="NAME", help="model as clients name it")
    return action


def _add_curate(actions: Commands) -> None:
    curate = _add_action(actions, "curate", "scrub, deduplicate and sample a day's requests")
    add = curate.add_argument
    add("--day", required=True, metavar="YYYY-MM-DD", help="the day, UTC")
    text = "share of every stratum to review; 1.0 takes every row (quotas of the settings)"
    add("--sample", type=float, metavar="RATE", help=text)
    add("--base-model", metavar="URI", help="base model, to count tokens (none)")
    add(
        "--reference", metavar="DATASET_URI", help="dataset.parquet to compare with (the release's)"
    )
    add("--ledger", metavar="PLACE", help="usage ledger to compare with ($TUNELINE_LEDGER)")
    _add_config(curate)
    add_json_argument(curate, "print the evidence as JSON")
    curate.set_defaults(command=_curate)


def _add_config(action: argparse.ArgumentParser) -> None:
    text = "YAML file of settings, by path or address in a store"
    action.add_argument("--config", metavar="FILE", help=text)


def _store(arguments: argparse.Namespace) -> Store:
    from tuneline.governance.production.curated_days import check_model
    from tuneline.store import open_store

    check_model(arguments.model)
    return open_store(store_uri(arguments))


def _curate(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.curate import curate
    from tuneline.governance.production.curated_days import parse_day
    from tuneline.governance.production.settings import read_settings

    named = os.environ.get("TUNELINE_LEDGER", "")
    # A gateway that was never started has written none.
    known = named if "://" in named or Path(named).is_file() else None
    settings = read_settings(
        arguments.config,
        base_model=arguments.base_model,
        reference=arguments.reference,
        sample_rate=arguments.sample,
        ledger=arguments.ledger or known,
    )
    day = curate(_store(arguments), arguments.model, parse_day(arguments.day), settings)
    evidence = day.evidence
    if arguments.json:
        document = {"uri": day.uri, **evidence.model_dump(mode="json", by_alias=True)}
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print(f"{evidence.verdict}: {evidence.summary}\n{day.uri}")
    return EXIT_OK


def _drift(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.curated_days import parse_day
    from tuneline.governance.production.drift_look import look_at
    from tuneline.governance.production.settings import read_settings

    settings, store = read_settings(arguments.config), _store(arguments)
    look = look_at(store, arguments.model, parse_day(arguments.until), settings.governance)
    if arguments.json:
        print(store.get_bytes(store.key_of(look.report)).decode())
    else:
        outcome = (
            "drift" if look.drifted else "no drift" if look.verdict == "pass" else "not compared"
        )
        print(f"{outcome}: {look.summary}\n{look.report}")
    return EXIT_OK


def _review(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.labels import (
        as_csv,
        as_jsonl,
        open_rows,
        parse_days,
        read_labels,
        review_rows,
    )

    store = _store(arguments)
    out = arguments.out
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {out}: name a .csv or a .jsonl file")
    days = parse_days(arguments.days) if arguments.days else None
    labels = read_labels(store, arguments.model)
    _tell(labels.skipped)
    rows = [
        row
        for row in open_rows(review_rows(store, arguments.model), labels)
        if days is None or days[0].isoformat() <= row.day <= days[1].isoformat()
    ]
    if out is None:
        sys.stdout.write(as_jsonl(rows).decode())
        return EXIT_OK
    _write(out, as_csv(rows) if out.suffix == ".csv" else as_jsonl(rows))
    print(f"{out}: {len(rows)} rows wait for a decision")
    return EXIT_OK


def _label(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.labels import store_labels

    try:
        raw = arguments.file.read_bytes()
    except OSError as error:
        raise UserError(f"{arguments.file} can't be read: {error.strerror}") from None
    name = str(arguments.file)
    count = store_labels(_store(arguments), arguments.model, raw, name, arguments.by)
    print(f"{count} labels by {arguments.by} stored")
    return EXIT_OK


def _answers(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.labels import take_answers

    count = take_answers(_store(arguments), arguments.model, arguments.name)
    print(f"{count} labels stored")
    return EXIT_OK


def _reviewed(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.reviewed import reviewed_rows

    found = reviewed_rows(_store(arguments), arguments.model)
    _tell(found.skipped)
    _write(arguments.out, found.jsonl().encode())
    counts = {
        "rows": len(found.rows),
        "version": found.version,
        "rejected": found.rejected,
        "conflicts": found.conflicts,
        "skipped": found.skipped,
    }
    if arguments.json:
        print(json.dumps({"file": str(arguments.out), **counts}, indent=1, ensure_ascii=False))
    else:
        print(
            f"{arguments.out}: {len(found.rows)} reviewed rows, version {found.version[:12]}; "
            f"{found.rejected} rejected, {found.conflicts} with labels that disagree"
        )
    return EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    from tuneline.governance.production.reviewed import review_status

    status = review_status(_store(arguments), arguments.model)
    if arguments.json:
        print(json.dumps(asdict(status), indent=1, ensure_ascii=False))
        return EXIT_OK
    _tell(status.skipped)
    print(
        f"{len(status.days_logged)} days logged, {len(status.days_curated)} curated "
        f"({status.rows_curated} rows); {status.in_review} rows wait for review, "
        f"{status.labelled} are labelled, {status.reviewed} accepted or corrected"
    )
    return EXIT_OK


def _tell(skipped: Iterable[str]) -> None:
    for error in skipped:
        print(f"tuneline: a labels file is left out: {error}", file=sys.stderr)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None
