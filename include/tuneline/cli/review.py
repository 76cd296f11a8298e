"""`tuneline review`: the blind review of a run in a terminal or by file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import Commands, add_run_argument
from tuneline.errors import EXIT_OK

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


def _add_export(actions: Commands) -> None:
    export = actions.add_parser("export", help="write the pairs of a run for others to vote on")
    add_run_argument(export)
    export.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="a .csv file, for spreadsheets",
    )
    export.add_argument(
        "--reviewer", default="", metavar="NAME", help="name to write into the column reviewer"
    )
    export.set_defaults(command=_export)


def _add_import(actions: Commands) -> None:
    reader = actions.add_parser("import", help="read a file of votes and judge the review again")
    reader.add_argument("file", type=Path, metavar="FILE", help="the filled .csv file")
    add_run_argument(reader)
    reader.set_defaults(command=_import)


def _vote(arguments: argparse.Namespace) -> int:
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


def _export(arguments: argparse.Namespace) -> int:
    from tuneline.people.blind_review import export_file

    run = _prepared(arguments.run)
    count = export_file(run, arguments.out, reviewer=arguments.reviewer)
    print(f"{arguments.out}: {count} pairs; `tuneline review import` reads the filled file")
    return EXIT_OK


def _import(arguments: argparse.Namespace) -> int:
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
