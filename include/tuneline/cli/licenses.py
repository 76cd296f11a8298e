"""`tuneline licenses`: the licences of a run that wait for a person, and the answer to them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tuneline.cli.groups import Commands, add_json_argument, add_run_argument
from tuneline.errors import EXIT_OK

if TYPE_CHECKING:
    from tuneline.artifacts.governance import AskedLicense
    from tuneline.run import Run


def add_licenses(commands: Commands) -> None:
    """Add `tuneline licenses` and its actions."""
    licenses = commands.add_parser(
        "licenses", help="decide on licences that the rules leave to a person"
    )
    actions = licenses.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="show the licences of a run that wait for a person")
    show.add_argument("run", metavar="RUN_URI", help="the run")
    add_json_argument(show)
    show.set_defaults(command=_show)
    accept = actions.add_parser(
        "accept",
        help="accept them; the answer is recorded under your login name",
        description="Accept the licences that `tuneline licenses show` lists. In Airflow the task "
        "approve_license asks the same; use that where other people rely on who answered.",
    )
    add_run_argument(accept)
    accept.add_argument("--reason", required=True, help="who read the licence, and what it allows")
    accept.set_defaults(command=_accept)


def _waiting(run: Run) -> list[AskedLicense]:
    from tuneline.licenses.findings import open_of_run, open_packages_of_run

    found = {a.subject: a for a in [*open_of_run(run), *open_packages_of_run(run)]}
    return list(found.values())


def _show(arguments: argparse.Namespace) -> int:
    import json

    from tuneline.licenses.duties import question_text
    from tuneline.run import Run

    run = Run.open(arguments.run)
    waiting = _waiting(run)
    if arguments.json:
        print(json.dumps([asked.model_dump() for asked in waiting], indent=1))
    elif waiting:
        print(question_text(run, waiting))
    else:
        print("no licence of this run waits for a person")
    return EXIT_OK


def _accept(arguments: argparse.Namespace) -> int:
    from tuneline.artifacts.answers import Person
    from tuneline.licenses import answers
    from tuneline.people.approvals import YES
    from tuneline.people.terminal import this_user
    from tuneline.run import Run

    run = Run.open(arguments.run)
    waiting = _waiting(run)
    by = f"{this_user()} (command line)"
    answers.record(run, waiting, YES, Person(by), arguments.reason)
    for asked in waiting:
        print(f"accepted by {by}: {asked.name} ({asked.license})")
    print(f"now run `tuneline step license_audit --run {run.uri}` again")
    return EXIT_OK
