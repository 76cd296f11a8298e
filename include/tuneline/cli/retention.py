"""Commands that delete: runs that nothing needs any more, and data about a person."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tuneline.cli.groups import Commands, add_json_argument, add_store_argument, store_uri
from tuneline.errors import EXIT_OK


def add_prune(actions: Commands) -> None:
    """Add `tuneline run prune`."""
    prune = actions.add_parser(
        "prune",
        help="delete runs that nothing needs any more",
        description="List the runs of a store: those that ended unreleased, releases that later "
        "ones have superseded, and checkpoints and engines of other releases; and why each of the "
        "others stays. Deletes with --yes alone. One that was killed is ended by the next.",
    )
    text = "days since something was written to a run, at least 1d (90d)"
    prune.add_argument("--older-than", default="90d", metavar="DAYS", help=text)
    text = "releases of each pointer that stay whole (3)"
    prune.add_argument("--keep", type=int, default=3, metavar="N", help=text)
    _add_deleting(prune)
    prune.set_defaults(command=_prune)


def add_erase(commands: Commands) -> None:
    """Add `tuneline erase`."""
    erase = commands.add_parser(
        "erase",
        help="delete the data about a person",
        description="List the rows of datasets, quarantine, production logs, labels and sheets of "
        "a store that name a person, by a name, an address or a number in any of its forms; what "
        "can't be erased; and the releases that were trained with such rows. Erases with --yes "
        "alone. The report names the subject by its hash.",
    )
    text = "the name, the address or the number; - reads it from standard input"
    erase.add_argument("subject", metavar="SUBJECT", help=text)
    _add_deleting(erase)
    erase.set_defaults(command=_erase)


def _add_deleting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="delete; without it nothing changes")
    add_store_argument(parser)
    add_json_argument(parser)


def _prune(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.prune import Pruning, retention
    from tuneline.people.terminal import this_user
    from tuneline.store import open_store

    rules = retention(arguments.older_than, arguments.keep)
    pruning = Pruning(open_store(store_uri(arguments)), rules)
    by, freed, found = f"{this_user()} (tuneline run prune)", 0, []
    for planned in pruning.fates():
        goes = arguments.yes and planned.kind != "kept"
        fate = pruning.carry_out(planned, by) if goes else planned
        found.append(asdict(fate))
        freed += fate.bytes if fate.kind != "kept" else 0
        if not arguments.json:
            what = f"{fate.objects} objects, {fate.bytes:,} bytes" if fate.objects else "stays"
            print(f"{fate.kind:<11} {fate.run}  {what}: {fate.why}", flush=True)
    if arguments.json:
        print(json.dumps({"deleted": arguments.yes, "bytes": freed, "runs": found}, indent=1))
        return EXIT_OK
    print(f"{freed:,} bytes {'are freed' if arguments.yes else 'would be freed'}")
    if freed and not arguments.yes:
        print("nothing was deleted; --yes deletes", file=sys.stderr)
    return EXIT_OK


def _erase(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.erase import Eraser, Subject
    from tuneline.people.terminal import this_user
    from tuneline.store import open_store

    text = sys.stdin.readline() if arguments.subject == "-" else arguments.subject
    eraser = Eraser(open_store(store_uri(arguments)), Subject(text), this_user())
    found = eraser.search()
    if arguments.yes and found.files:
        found = eraser.erase()
    if arguments.json:
        print(found.model_dump_json(indent=1, by_alias=True, exclude={"ids"}))
        return EXIT_OK
    for key, rows in found.files.items():
        print(f"{rows:>7}  {key}")
    for sentence in found.left:
        print(f"left: {sentence}")
    done = "erased" if arguments.yes else "found; --yes erases them"
    print(f"{sum(found.files.values())} rows and texts of {found.subject_sha256[:16]} {done}")
    return EXIT_OK
