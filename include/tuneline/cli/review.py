"""`tuneline review`: the blind review of a run in a terminal or by file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import Commands, add_run_argument
from tuneline.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from tuneline.run import Run


def add_review(commands: Commands) -> None:
    """Add `tuneline review` and its actions."""
    review = commands.add_parser("review", help="compare answers blindly, in a terminal or by file")
    actions = review.add_subparsers(required=True, metavar="ACTION")
    vote = actions.add_parser("vote", help="vote on the pairs of a run, one key for each")
    add_run_argument(vote)
    vote.set_defaults(command=_vote)
    _add_export(actions)
    _add_import(actions)
    _add_judge(actions)


def _add_judge(actions: Commands) -> None:
    judge = actions.add_parser(
        "judge",
        help="have a model vote on the pairs, each in both orders; its votes decide nothing",
    )
    judge.add_argument(
        "model",
        metavar="URL#MODEL",
        help="an OpenAI-compatible endpoint and its model; questions and answers are sent there",
    )
    add_run_argument(judge)
    judge.add_argument("--api-key-env", metavar="NAME", help="variable with the endpoint's key")
    judge.add_argument(
        "--parallel", type=int, default=4, metavar="N", help="requests at once (default 4)"
    )
    judge.set_defaults(command=_ask_judge)


def _add_export(actions: Commands) -> None:
    export = actions.add_parser("export", help="write the pairs of a run for others to vote on")
    add_run_argument(export)
    export.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help=".csv for spreadsheets, .json for Argilla 2",
    )
    export.add_argument(
        "--reviewer", default="", metavar="NAME", help="name to write into the column reviewer"
    )
    export.add_argument(
        "--judge", action="store_true", help="add the pairs that only a judge votes on"
    )
    export.set_defaults(command=_export)


def _add_import(actions: Commands) -> None:
    reader = actions.add_parser("import", help="read a file of votes and judge the review again")
    reader.add_argument("file", type=Path, metavar="FILE", help=".csv, or .json of Argilla records")
    add_run_argument(reader)
    reader.add_argument(
        "--judge", metavar="MODEL", help="the model that voted; its votes inform and decide nothing"
    )
    reader.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="ID=NAME",
        help="name of an Argilla user; may be given several times",
    )
    reader.set_defaults(command=_import)


def _vote(arguments: argparse.Namespace) -> int:
    from tuneline.human_answers import terminal

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


def _export(arguments: argparse.Namespace) -> int:
    from tuneline.human_answers.review_files import export_file

    run = _prepared(arguments.run)
    count = export_file(run, arguments.out, reviewer=arguments.reviewer, for_judge=arguments.judge)
    print(f"{arguments.out}: {count} pairs; `tuneline review import` reads the filled file")
    return EXIT_OK


def _import(arguments: argparse.Namespace) -> int:
    from tuneline.human_answers.review_files import import_file
    from tuneline.human_answers.terminal import this_user
    from tuneline.run import Run

    run = Run.open(arguments.run)
    imported = import_file(
        run,
        arguments.file,
        imported_by=this_user(),
        judge=arguments.judge,
        users=_users(arguments.user),
    )
    for name, count in imported.votes.items():
        print(f"{arguments.file}: {count} votes of {name} stored")
    return _judged(run)


def _ask_judge(arguments: argparse.Namespace) -> int:
    from tuneline.evaluation.review.llm_judge import judge_pairs
    from tuneline.harness.subjects import endpoint_of
    from tuneline.human_answers.terminal import this_user

    endpoint = endpoint_of(arguments.model, arguments.api_key_env, arguments.parallel)
    run = _prepared(arguments.run)
    judged = judge_pairs(run, endpoint, asked_by=this_user())
    print(
        f"{endpoint.model}: {len(judged.marks)} votes on {judged.pairs} pairs stored; "
        f"{judged.steady} stayed with their answer when the sides were swapped, the others are ties"
    )
    return _judged(run)


def _users(given: list[str]) -> dict[str, str]:
    names = {}
    for pair in given:
        user, separator, name = pair.partition("=")
        if not (user and separator and name):
            raise UserError(f"--user {pair}: write ID=NAME")
        names[user] = name
    return names


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
    """Evaluate human_review again with the votes that are there now, and print its verdict.

    Votes that come after `lineage` change nothing of the version that its manifest describes.
    """
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
