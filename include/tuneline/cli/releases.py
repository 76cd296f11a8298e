"""Commands on releases (verify, draw, compare, go back) and on licences that wait for a person."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import (
    Commands,
    add_json_argument,
    add_pointer_argument,
    add_public_key_argument,
    add_run_argument,
    add_store_argument,
    store_uri,
)
from tuneline.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from tuneline.artifacts.governance import AskedLicense
    from tuneline.run import Run

_RELEASE = "MODEL/VERSION, MODEL (its released version), or the URI of a manifest.json"


def add_releases(commands: Commands) -> None:
    """Add `tuneline verify`, `lineage`, `diff`, `audit` and `rollback`."""
    verify = commands.add_parser(
        "verify",
        help="recompute every hash of a released model",
        description="Recompute the hash of every file of a release, of its dataset and of the "
        "files that it was read from, and compare the release log and the pointer with each "
        "other. Prints one sentence for each difference; exit code 1 if there is one.",
    )
    verify.add_argument("manifest", metavar="MANIFEST_URI", help="manifest of the release")
    add_public_key_argument(verify)
    verify.set_defaults(command=_verify)
    lineage = commands.add_parser("lineage", help="draw the releases of a model, newest first")
    lineage.add_argument("model", metavar="MODEL", help="name of the model")
    lineage.add_argument("--svg", type=Path, metavar="FILE", help="also write a drawing")
    add_store_argument(lineage)
    lineage.set_defaults(command=_lineage)
    diff = commands.add_parser("diff", help="say what changed between two releases")
    diff.add_argument("before", metavar="A", help=_RELEASE)
    diff.add_argument("after", metavar="B", help="the same")
    add_store_argument(diff)
    add_json_argument(diff)
    diff.set_defaults(command=_diff)
    audit = commands.add_parser(
        "audit",
        help="write a release's technical documentation (Annex IV of the EU AI Act)",
        description="Map the items to the points of Annex IV to Regulation (EU) 2024/1689, with "
        "the numbers of a release's evidence, and say what is missing. Writes Markdown.",
    )
    audit.add_argument("release", metavar="RELEASE", help=_RELEASE)
    audit.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="YAML file with what you declare, a text by point (1(a), 2(e), …); it goes before "
        "governance.annex_iv of the run's settings",
    )
    add_store_argument(audit)
    audit.set_defaults(command=_audit)

    rollback = commands.add_parser(
        "rollback",
        help="release an earlier version of a model again",
        description="Move a model's release pointer back to a version that was released before, "
        "after its files were compared with its manifest. A follower serves it within seconds. "
        "The release log keeps who did it, and why.",
    )
    add = rollback.add_argument
    add("model", metavar="MODEL", help="name of the model")
    add("version", metavar="VERSION", nargs="?", help="the version; the one before by default")
    add("--reason", help="why; kept in the release log")
    add("--by", help="who does it; the user of this machine by default")
    add_pointer_argument(rollback)
    add_store_argument(rollback)
    rollback.set_defaults(command=_rollback)


def _verify(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.verify import examine

    found = examine(arguments.manifest, arguments.public_key)
    for difference in found.differences:
        print(f"tuneline: {difference}", file=sys.stderr)
    for note in found.unchecked:
        print(f"not checked: {note}")
    if not found.differences:
        print(f"{arguments.manifest}: every hash agrees")
    return EXIT_FAILED if found.differences else EXIT_OK


def _lineage(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.compare import ancestors, as_svg, tree_text
    from tuneline.store import open_store

    line = ancestors(open_store(store_uri(arguments)), arguments.model)
    print(tree_text(arguments.model, line))
    if arguments.svg:
        arguments.svg.write_text(as_svg(arguments.model, line), encoding="utf-8")
    return EXIT_OK


def _diff(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.compare import as_text, changes, find_release

    store = arguments.store or os.environ.get("TUNELINE_STORE")
    before, after = (find_release(a, store) for a in (arguments.before, arguments.after))
    found = changes(before, after)
    if arguments.json:
        print(json.dumps([asdict(change) for change in found], indent=1, ensure_ascii=False))
    else:
        print(as_text(before, after, found))
    return EXIT_OK


def _audit(arguments: argparse.Namespace) -> int:
    from tuneline.governance.documents.annex_iv import annex_iv, read_texts
    from tuneline.governance.documents.facts import Facts
    from tuneline.governance.release.compare import find_release

    texts = read_texts(arguments.texts) if arguments.texts else {}
    store = arguments.store or os.environ.get("TUNELINE_STORE")
    print(annex_iv(Facts(find_release(arguments.release, store)), texts), end="")
    return EXIT_OK


def _rollback(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.rollback import NO_REASON, announce, roll_back
    from tuneline.store import open_store

    store = open_store(store_uri(arguments))
    by, reason = arguments.by or getpass.getuser(), arguments.reason or NO_REASON
    place = (store, arguments.model, arguments.version)
    pointer = roll_back(*place, by=by, reason=reason, which=arguments.pointer)
    print(announce(store, pointer))
    return EXIT_OK


def add_licenses(commands: Commands) -> None:
    """Add `tuneline licenses` and its actions."""
    licenses = commands.add_parser(
        "licenses", help="decide on licences that the rules leave to a person"
    )
    actions = licenses.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="show the licences of a run that wait for a person")
    show.add_argument("run", metavar="RUN_URI", help="the run")
    add_json_argument(show)
    show.set_defaults(command=_show_licenses)
    accept = actions.add_parser(
        "accept",
        help="accept them; the answer is recorded under your login name",
        description="Accept the licences that `tuneline licenses show` lists. In Airflow the task "
        "approve_license asks the same; use that where other people rely on who answered.",
    )
    add_run_argument(accept)
    accept.add_argument("--reason", required=True, help="who read the licence, and what it allows")
    accept.set_defaults(command=_accept_licenses)


def _waiting(run: Run) -> list[AskedLicense]:
    from tuneline.licenses.findings import open_of_run, open_packages_of_run

    found = {a.subject: a for a in [*open_of_run(run), *open_packages_of_run(run)]}
    return list(found.values())


def _show_licenses(arguments: argparse.Namespace) -> int:
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


def _accept_licenses(arguments: argparse.Namespace) -> int:
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
