"""Parsers with the flags of the release's programs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

FLAGS = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))
_TYPES = {"int": int, "float": float, "str": str}


class Refused(Exception):
    """A command line that the release would refuse."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises what it refuses."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{self.prog}: {message}")


def parser_of(program: str) -> Parser:
    """The parser of one of the release's programs."""
    parser = Parser(prog=program, allow_abbrev=False, add_help=False)
    for flag, kind in FLAGS[program]["values"].items():
        if isinstance(kind, list):
            parser.add_argument(flag, choices=kind)
        elif kind == "list":
            parser.add_argument(flag, nargs="+")
        else:
            parser.add_argument(flag, type=_TYPES[kind])
    for flag in FLAGS[program]["switches"]:
        parser.add_argument(flag, action="store_true")
    if program == "trtllm-serve":
        parser.add_argument("model")
    return parser


def parse(command: Sequence[str]) -> argparse.Namespace:
    """Parse a whole command line."""
    skip = 2 if command[0] == "python" else 1
    return parser_of(Path(command[skip - 1]).name).parse_args(list(command[skip:]))


def parse_own(program: str) -> argparse.Namespace:
    """Parse the arguments of this process, which is the program; end it if they are refused."""
    try:
        return parser_of(program).parse_args(sys.argv[1:])
    except Refused as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
