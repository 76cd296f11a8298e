"""Commands on a run: its items, its steps, its verdicts."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.catalogue import HELPERS, ITEMS
from tuneline.cli.groups import (
    Commands,
    add_json_argument,
    add_preset_argument,
    add_run_argument,
    add_store_argument,
    store_uri,
)
from tuneline.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tuneline.run import Run
    from tuneline.verdicts import ItemStatus

# Columns of a pipe or a log.
_WIDTH = 80
# In the order in which verdicts are shown.
_VERDICT_STYLES = {
    "fail": "bold red",
    "inconclusive": "yellow",
    "warn": "yellow",
    "waived": "magenta",
    "not_run": "red",
    "pass": "green",
    "not_applicable": "dim",
}
# The options by the fields of the form that they fill in, for an error.
_NAMES = {"data": "--data", "base_model": "--base-model", "reason": "--reason"}
# Nothing is to be done about these.
_SETTLED = ("pass", "not_applicable", "waived")


def add_runs(commands: Commands) -> None:
    """Add `tuneline items`, `step`, `checklist`, `run` and `erase`."""
    items = commands.add_parser("items", help="list the 25 items of the checklist")
    add_json_argument(items)
    items.set_defaults(command=_items)
    step = commands.add_parser("step", help="carry out one item of a run")
    step.add_argument("item", help="id of the item; `tuneline items` lists them")
    add_run_argument(step)
    step.set_defaults(command=_step)
    checklist = commands.add_parser("checklist", help="show the verdicts of a run")
    checklist.add_argument("run", metavar="RUN_URI", help="the run")
    add_json_argument(checklist)
    checklist.set_defaults(command=_checklist)
    estimate = commands.add_parser(
        "estimate",
        help="say which pods a run would need, for how long and at what cost",
        description="Size the pods of a run by its base model, and its training by operations per "
        "token, before anything starts. gradient_accumulation measures the hours in the run.",
    )
    _add_settings(estimate)
    estimate.add_argument("--tokens", type=int, help="tokens of the dataset; by its files' bytes")
    estimate.set_defaults(command=_estimate)
    run = commands.add_parser("run", help="create a run, carry out a helper step of one, prune")
    _add_actions(run.add_subparsers(required=True, metavar="ACTION"))
    add_erase(commands)


def _add_actions(actions: Commands) -> None:
    """Add the actions of `tuneline run`: create a run, and one for each helper step."""
    for name, command, what in (
        ("create", _create, "create a run from settings"),
        ("all", _all, "create a run and carry it out up to the release, without Airflow"),
    ):
        action = actions.add_parser(name, help=what)
        add_store_argument(action)
        action.add_argument("--run-id", help="name of the run; made from the clock by default")
        _add_settings(action)
        action.add_argument("--reason", default="", help="why the run is started")
        action.set_defaults(command=command)
    for helper in HELPERS:
        action = actions.add_parser(helper.action, help=helper.title)
        add_run_argument(action)
        action.set_defaults(command=_step, item=helper.id)
        if helper.id == "promote":
            text = "also push the released version there: hf://org/name, oci://registry/repository"
            action.add_argument("--push", action="append", default=[], metavar="TO", help=text)
            action.set_defaults(command=_promote)
    sweep = actions.add_parser("sweep", help="try the ranks of training.sweep_r")
    add_run_argument(sweep)
    sweep.add_argument("--r", type=int, metavar="N", help="try this rank alone")
    sweep.set_defaults(command=_sweep)
    answer = actions.add_parser("answer", help="answer the hold-out in evaluation.shards parts")
    add_run_argument(answer)
    answer.add_argument("--shard", type=int, metavar="K", help="answer this part alone, from 0")
    answer.set_defaults(command=_answer)
    add_prune(actions)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add_preset_argument(parser)
    parser.add_argument("--data", help="dataset")
    parser.add_argument("--base-model", help="base model")
    parser.add_argument("--config", type=Path, help="YAML file of settings, above the preset's")


def _items(arguments: argparse.Namespace) -> int:
    if arguments.json:
        rows = [
            {"id": i.id, "phase": i.phase, "severity": i.severity, "title": i.title} for i in ITEMS
        ]
        print(json.dumps(rows, indent=1))
        return EXIT_OK
    for item in ITEMS:
        print(f"{item.phase:<11} {item.id:<26} {item.severity:<12} {item.title}")
    return EXIT_OK


def _step(arguments: argparse.Namespace) -> int:
    from tuneline.step import run_step

    return run_step(arguments.item, arguments.run)


def _promote(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.push import destinations_of, push_everywhere
    from tuneline.run import Run

    run = Run.open(arguments.run)
    destinations = destinations_of(run, arguments.push)
    code = _step(arguments)
    push_everywhere(run, destinations)
    return code


def _checklist(arguments: argparse.Namespace) -> int:
    from tuneline.run import Run
    from tuneline.verdicts import checklist

    rows = checklist(Run.open(arguments.run))
    if arguments.json:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
    else:
        print_checklist(arguments.run, rows)
    return EXIT_FAILED if any(row.stops_release for row in rows) else EXIT_OK


def print_checklist(run_uri: str, rows: Sequence[ItemStatus]) -> None:
    """Print the verdicts, what needs a person first; 80 columns where there is no terminal."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    counts = Counter(str(row.verdict) for row in rows)
    console.print(f"Release checklist of {run_uri}", soft_wrap=True)
    console.print(", ".join(f"{counts[name]} {name}" for name in _VERDICT_STYLES if counts[name]))
    for row in sorted(rows, key=lambda row: list(_VERDICT_STYLES).index(row.verdict)):
        line = Text(f"{row.verdict:<14} ", _VERDICT_STYLES[row.verdict])
        line.append(f"{row.item:<25} ", "bold")
        if row.verdict in _SETTLED or row.verdict == "not_run":
            line.append(row.because if row.verdict == "not_run" else row.summary)
            line.truncate(console.width, overflow="ellipsis")
            console.print(line)
            continue
        console.print(line.append(row.severity))
        for text in (row.summary, f"because {row.because}", f"→ {row.remedy}"):
            console.print(Padding(Text(text), (0, 0, 0, 4)))


def _create(arguments: argparse.Namespace) -> int:
    print(_created(arguments).uri)
    return EXIT_OK


def _all(arguments: argparse.Namespace) -> int:
    from tuneline.cli.whole_run import refuse_questions, run_all
    from tuneline.verdicts import checklist

    run = _created(arguments, refuse_questions)
    print(f"run {run.uri}", flush=True)
    code = run_all(run)
    print()
    print_checklist(run.uri, checklist(run))
    print("released" if code == EXIT_OK else "not released")
    return code


def _estimate(arguments: argparse.Namespace) -> int:
    from tuneline.launch import config_from_fields, fit_inputs
    from tuneline.training.resources.forecast import forecast

    config = config_from_fields(_fields(arguments), _where(arguments), names=_NAMES)
    for line in forecast(*fit_inputs(config), arguments.tokens).lines():
        print(line)
    return EXIT_OK


def _created(arguments: argparse.Namespace, check: Callable[[Run], object] | None = None) -> Run:
    from tuneline.launch import create_run, new_run_id

    fields = {**_fields(arguments), "reason": arguments.reason}
    run_id = arguments.run_id or new_run_id()
    where = _where(arguments)
    return create_run(fields, store_uri(arguments), run_id, where=where, names=_NAMES, check=check)


def _where(arguments: argparse.Namespace) -> str | None:
    return str(arguments.config) if arguments.config else None


def _fields(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return the fields of the form that the arguments of `_add_settings` fill in."""
    import yaml

    from tuneline.config import read_yaml

    overrides = yaml.safe_dump(read_yaml(arguments.config)) if arguments.config else ""
    data = arguments.data or ""
    if data and "://" not in data:
        # Steps may run in another folder than this command.
        data = str(Path(data).expanduser().absolute())
    return {
        "data": data,
        "base_model": arguments.base_model,
        "preset": arguments.preset,
        "overrides": overrides,
    }


def _sweep(arguments: argparse.Namespace) -> int:
    from tuneline.training.loop.rank_sweep import run_trials

    for line in run_trials(arguments.run, [arguments.r] if arguments.r else []):
        print(line)
    return EXIT_OK


def _answer(arguments: argparse.Namespace) -> int:
    from tuneline.evaluation.scoring.shards import answer_shards

    for line in answer_shards(arguments.run, arguments.shard):
        print(line)
    return EXIT_OK


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
    text = "share of wrong answers to catch; governance.fallback.caught_share by default"
    calibrate.add_argument("--caught", type=float, metavar="SHARE", help=text)
    text = "share of right answers that may be sent on (governance.fallback.false_alarm_share)"
    calibrate.add_argument("--cost", type=float, metavar="SHARE", help=text)
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
