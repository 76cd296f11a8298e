"""Costs as a table for people, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from tuneline.serving.gateway.costs import ApiPrice, BreakEven, Group

# A spreadsheet would take text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = ("requests", "attempts", "prompt_tokens", "completion_tokens", "cost", "currency")


def as_table(by: str, groups: Sequence[Group], price: ApiPrice | None) -> str:
    """Return an aligned table with a line of sums for each currency."""
    head = [by, *_COLUMNS, *(["api_cost"] if price else [])]
    lines = [head, *(_cells(group.name or "(none)", group, price) for group in groups)]
    for currency in sorted({group.currency for group in groups}):
        some = [group for group in groups if group.currency == currency]
        lines.append(_cells("total", _sum(some), price))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def as_csv(by: str, groups: Sequence[Group], price: ApiPrice | None) -> str:
    """Return CSV with full numbers; a name that looks like a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([by, *_COLUMNS, *(["api_cost"] if price else [])])
    for group in groups:
        name = f"'{group.name}" if group.name.startswith(_FORMULA) else group.name
        values = [getattr(group, column) for column in _COLUMNS]
        writer.writerow([name, *values, *([price.of(group)] if price else [])])
    return out.getvalue()


def as_json(
    by: str, groups: Sequence[Group], price: ApiPrice | None, compared: BreakEven | None
) -> str:
    """Return JSON: the groups and, against an API, the comparison."""
    rows = [
        {
            by: group.name,
            **{name: getattr(group, name) for name in _COLUMNS},
            **({"api_cost": price.of(group)} if price else {}),
        }
        for group in groups
    ]
    document: dict[str, object] = {"by": by, "rows": rows}
    if compared:
        document["against"] = asdict(compared)
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def told(compared: BreakEven, currency: str) -> str:
    """Return the comparison with an API in sentences."""
    text = (
        f"These requests cost {compared.cost:.6f} {currency}; at the API's price they would have "
        f"cost {compared.api_cost:.6f}."
    )
    if compared.from_requests_per_hour is not None:
        text += (
            f" The machines are cheaper from {compared.from_requests_per_hour:.1f} such requests "
            f"an hour; there were {compared.requests_per_hour:.1f}."
        )
    return text + "\n"


def _cells(name: str, group: Group, price: ApiPrice | None) -> list[str]:
    cells = [name, f"{group.requests}", f"{group.attempts}"]
    cells += [f"{group.prompt_tokens}", f"{group.completion_tokens}"]
    cells += [f"{group.cost:.6f}", group.currency]
    return [*cells, f"{price.of(group):.6f}"] if price else cells


def _sum(groups: Sequence[Group]) -> Group:
    return Group(
        name="total",
        requests=sum(g.requests for g in groups),
        attempts=sum(g.attempts for g in groups),
        prompt_tokens=sum(g.prompt_tokens for g in groups),
        completion_tokens=sum(g.completion_tokens for g in groups),
        cost=sum(g.cost for g in groups),
        currency=groups[0].currency,
        served_prompt_tokens=sum(g.served_prompt_tokens for g in groups),
        served_completion_tokens=sum(g.served_completion_tokens for g in groups),
    )
