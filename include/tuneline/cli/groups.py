"""Types and arguments that several groups of commands share."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

from tuneline.errors import UserError

# A string: argparse makes the class generic for type checkers alone.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--run`."""
    parser.add_argument("--run", required=True, metavar="URI", help="the run")


def add_store_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--store`; `store_uri` reads it."""
    parser.add_argument("--store", help="store URI; $TUNELINE_STORE by default")


def add_json_argument(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def store_uri(arguments: argparse.Namespace) -> str:
    """Return the store of `--store`, or of `TUNELINE_STORE`.

    Raises:
        UserError: if neither names one.
    """
    store = arguments.store or os.environ.get("TUNELINE_STORE")
    if not store:
        raise UserError("no store: give --store or set TUNELINE_STORE (file:///dir or s3://…)")
    return str(store)
