"""Commands around money: API keys and costs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.cli.groups import Commands, add_json_argument
from tuneline.errors import EXIT_OK, UserError
from tuneline.machine.checkout import stack_home

if TYPE_CHECKING:
    from tuneline.serving.gateway.ledger.reports import ApiPrice

_LIMITS = {
    "requests_at_once": (int, "N", "requests under way (half of the gateway's)"),
    "requests_per_minute": (int, "N", "requests in a minute"),
    "tokens_per_minute": (int, "N", "tokens of prompts and answers in a minute"),
    "tokens_per_day": (int, "N", "tokens in a day, UTC"),
    "tokens_per_month": (int, "N", "tokens in a month, UTC"),
    "cost_per_day": (float, "AMOUNT", "money in a day, in the gateway's currency"),
    "cost_per_month": (float, "AMOUNT", "money in a month"),
}


def add_accounts(commands: Commands) -> None:
    """Add `tuneline keys` and `costs`."""
    _add_keys(commands)
    costs = commands.add_parser("costs", help="sum up what requests cost")
    add = costs.add_argument
    text = "SQLite file, or postgresql://user@host/database ($TUNELINE_LEDGER, or the stack's)"
    add("--ledger", metavar="PLACE", help=text)
    add("--by", required=True, choices=("key", "user", "model", "day"), help="what makes a line")
    add("--since", type=_moment, metavar="TIME", help="a day (UTC) or RFC 3339 time to count from")
    add("--until", type=_moment, metavar="TIME", help="a day or time that is no longer counted")
    text = "an API's prices of a million prompt and completion tokens, to compare with"
    add("--against", type=_price, metavar="IN,OUT", help=text)
    text = "what the machines cost in an hour, for the break-even with --against"
    add("--hourly-cost", type=_amount, metavar="AMOUNT", help=text)
    form = costs.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--json", action="store_true", help="print JSON")
    costs.set_defaults(command=_costs)


def _add_keys(commands: Commands) -> None:
    keys = commands.add_parser("keys", help="make, list and revoke API keys of the gateway")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", help="name of the key's owner in ledger and logs")
    _add_file(create)
    text = "model that it may ask for; repeat it for several (all)"
    create.add_argument("--model", action="append", default=[], metavar="ID", help=text)
    for name, (kind, metavar, text) in _LIMITS.items():
        create.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    create.add_argument("--no-log", action="store_true", help="keep its requests out of the log")
    create.set_defaults(command=_create)
    listed = actions.add_parser("list", help="list the keys and what they may do")
    _add_file(listed)
    add_json_argument(listed)
    listed.set_defaults(command=_list)
    revoke = actions.add_parser("revoke", help="revoke a key; gateways refuse it within a second")
    revoke.add_argument("name", help="name of the key")
    _add_file(revoke)
    revoke.set_defaults(command=_revoke)


def _add_file(parser: argparse.ArgumentParser) -> None:
    text = "the keys file; $TUNELINE_KEYS or that of the local stack by default"
    parser.add_argument("--keys", type=Path, metavar="FILE", help=text)


def _keys_file(arguments: argparse.Namespace) -> Path:
    named = arguments.keys or os.environ.get("TUNELINE_KEYS")
    return Path(named) if named else _serving() / "keys.json"


def _ledger(arguments: argparse.Namespace) -> Path | str:
    named = arguments.ledger or os.environ.get("TUNELINE_LEDGER")
    if not named:
        return _serving() / "usage.sqlite"
    return str(named) if "://" in named else Path(named)


def _serving() -> Path:
    return stack_home() / "serving"


def _create(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.accounts.keys import add_key, parse_limits

    stated = {name: getattr(arguments, name) for name in _LIMITS}
    stated = {name: value for name, value in stated.items() if value is not None}
    limits = parse_limits(stated, "limits")
    path = _keys_file(arguments)
    logged = not arguments.no_log
    print(add_key(path, arguments.name, logged=logged, models=arguments.model, limits=limits))
    return EXIT_OK


def _list(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.accounts.keys import read_keys

    records = read_keys(_keys_file(arguments))
    if arguments.json:
        shown = [record.stated(exclude={"sha256"}) for record in records]
        print(json.dumps({"keys": shown}, indent=1))
        return EXIT_OK
    for record in records:
        words = [record.name, record.created_at or "-"]
        if record.revoked_at:
            words.append(f"revoked={record.revoked_at}")
        words.append(f"models={','.join(record.models or ()) or 'all'}")
        limits = record.limits.model_dump(exclude_none=True)
        words += [f"{name}={value:g}" for name, value in limits.items()]
        if not record.log:
            words.append("not logged")
        print("  ".join(words))
    return EXIT_OK


def _revoke(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.accounts.keys import revoke_key

    path = _keys_file(arguments)
    revoke_key(path, arguments.name)
    print(f"{path}: {arguments.name} is revoked")
    return EXIT_OK


def _costs(arguments: argparse.Namespace) -> int:
    from tuneline.serving.gateway.ledger.reports import (
        as_csv,
        as_json,
        as_table,
        break_even,
        costs,
        describe,
    )

    if arguments.hourly_cost is not None and arguments.against is None:
        raise UserError("--hourly-cost needs --against IN,OUT, the price of the API")
    place, price, by = _ledger(arguments), arguments.against, arguments.by
    window = {"since": arguments.since, "until": arguments.until}
    groups = costs(place, by, **window)
    compared = None
    if price:
        compared = break_even(place, groups, price, hourly_cost=arguments.hourly_cost, **window)
    if arguments.json:
        sys.stdout.write(as_json(by, groups, price, compared))
    elif arguments.csv:
        sys.stdout.write(as_csv(by, groups, price))
    else:
        sys.stdout.write(as_table(by, groups, price))
        if compared:
            sys.stdout.write(describe(compared, groups[0].currency))
    return EXIT_OK


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a day (2026-11-26) nor an RFC 3339 time"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of 0 or more")
    return amount


def _price(text: str) -> ApiPrice:
    from tuneline.serving.gateway.ledger.reports import ApiPrice

    amounts = text.split(",")
    if len(amounts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be two prices, such as 0.15,0.60")
    return ApiPrice(_amount(amounts[0]), _amount(amounts[1]))
