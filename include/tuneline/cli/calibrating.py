"""`tuneline calibrate`: set the confidence threshold of a run by hand."""

from __future__ import annotations

import argparse

from tuneline.cli.groups import Commands, add_json_argument
from tuneline.errors import EXIT_FAILED, EXIT_OK


def add_calibrate(commands: Commands) -> None:
    """Add `tuneline calibrate`."""
    calibrate = commands.add_parser(
        "calibrate",
        help="set the confidence threshold below which an answer falls back",
        description="Ask the shipped bytes of a run its validation rows, and set the threshold "
        "that catches a share of the wrong answers at a stated cost. The thresholds are kept in "
        "the run: `tuneline step fallback` proves the chain with them, and the release is served "
        "with them. Exit code 1 if none is set.",
    )
    calibrate.add_argument("--run", required=True, metavar="URI", help="the run")
    calibrate.add_argument(
        "--caught",
        type=float,
        metavar="SHARE",
        help="share of wrong answers to catch; governance.fallback.caught_share by default",
    )
    calibrate.add_argument(
        "--cost",
        type=float,
        metavar="SHARE",
        help="share of right answers that may be sent on; "
        "governance.fallback.false_alarm_share by default",
    )
    calibrate.add_argument("--rows", type=int, help="validation rows, at most")
    add_json_argument(calibrate)
    calibrate.set_defaults(command=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    from tuneline.governance.gateway.confidence import as_text, calibrate_run

    found = calibrate_run(
        arguments.run,
        caught_share=arguments.caught,
        false_alarm_share=arguments.cost,
        rows=arguments.rows,
    )
    if arguments.json:
        print(found.model_dump_json(indent=1, by_alias=True))
    else:
        print(as_text(found))
        print(f"to prove the chain with it: tuneline step fallback --run {arguments.run}")
    return EXIT_OK if found.whole.value is not None else EXIT_FAILED
