"""Types and arguments that several groups of commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeAlias

from tuneline.errors import UserError

# A string: argparse makes the class generic for type checkers alone.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--run`."""
    parser.add_argument("--run", required=True, metavar="URI", help="the run")


def add_preset_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--preset`."""
    parser.add_argument("--preset", default="laptop", help="preset to start from (laptop)")


def add_store_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--store`; `store_uri` reads it."""
    parser.add_argument("--store", help="store URI; $TUNELINE_STORE by default")


def add_pointer_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--pointer`."""
    text = "the model's pointer: production, or staging, which runs of the laptop profile move"
    choices = ("production", "staging")
    parser.add_argument("--pointer", choices=choices, default=choices[0], help=text)


def add_json_argument(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def add_public_key_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--public-key`."""
    text = "PEM file of the public key by which a release has to be signed"
    parser.add_argument("--public-key", type=Path, metavar="FILE", help=text)


def store_uri(arguments: argparse.Namespace) -> str:
    """Return the store of `--store`, or of `TUNELINE_STORE`."""
    store = arguments.store or os.environ.get("TUNELINE_STORE")
    if not store:
        raise UserError("no store: give --store or set TUNELINE_STORE (file:///dir or s3://…)")
    return str(store)
