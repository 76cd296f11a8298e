"""Commands that compare: production prompts with training data, and this code with its peers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tuneline.cli.groups import Commands, add_json_argument
from tuneline.errors import EXIT_OK, UserError
from tuneline.machine.checkout import project_root


def add_drift(commands: Commands) -> None:
    """Add `tuneline drift`."""
    drift = commands.add_parser("drift", help="compare production prompts with training data")
    text = "a release's baseline.json, by drift_detection; or a dataset of English prompts"
    drift.add_argument("--reference", required=True, metavar="DATASET", help=text)
    drift.add_argument("--logs", required=True, type=Path, metavar="FILE", help="JSONL, raw or not")
    text = "probability of a false alarm in a year of days (that of a run by default)"
    drift.add_argument("--alarms", type=float, metavar="P", help=text)
    text = "what earlier calls have seen, read and written anew; its days are left out"
    drift.add_argument("--state", type=Path, metavar="FILE", help=text)
    drift.add_argument("--plot", type=Path, metavar="FILE", help="draw the days (.svg or .png)")
    add_json_argument(drift)
    drift.set_defaults(command=_drift)


def add_bench(commands: Commands) -> None:
    """Add `tuneline bench`."""
    bench = commands.add_parser("bench", help="measure against other software")
    bench.add_argument("name", help="a benchmark, or `all`; docs/benchmarks.md lists them")
    add_json_argument(bench)
    bench.add_argument("--input", type=Path, metavar="FILE", help="rows in place of generated ones")
    bench.add_argument("--runs", type=int, metavar="N", help="runs of each system")
    bench.add_argument("--rows", type=int, metavar="N", help="rows to generate, or to take")
    bench.set_defaults(command=_bench)


def _drift(arguments: argparse.Namespace) -> int:
    from tuneline.governance.drift.reference import DEFAULT_ALARMS
    from tuneline.governance.drift_detection import compare_files

    alarms = DEFAULT_ALARMS if arguments.alarms is None else arguments.alarms
    if not 0 < alarms < 1:
        raise UserError(f"--alarms {alarms:g}: give a probability between 0 and 1")
    if arguments.plot and arguments.plot.suffix not in (".svg", ".png"):
        raise UserError(f"--plot {arguments.plot}: the name must end in .svg or .png")
    report = compare_files(
        arguments.reference, arguments.logs, alarms, state=arguments.state, plot=arguments.plot
    )
    if arguments.json:
        print(json.dumps(report, indent=1))
        return EXIT_OK
    print("drift detected" if report["drifted"] else "no drift")
    for m in report["measures"]:
        mark = "drifted" if m["drifted"] else "ok"
        print(f"  {m['name']:<20} {m['value']:.4f} (p {m['p_value']:.4f}) {mark}")
    return EXIT_OK


def _bench(arguments: argparse.Namespace) -> int:
    root = project_root()
    if not (root / "benchmarks").is_dir():
        raise UserError(
            "the benchmarks are not part of the installed package; run `tuneline bench` in a "
            "checkout of the source, where they are in benchmarks/"
        )
    sys.path.insert(0, str(root))
    from benchmarks.contest.command import bench

    return bench(
        arguments.name,
        as_json=arguments.json,
        source=arguments.input,
        runs=arguments.runs,
        rows=arguments.rows,
    )
