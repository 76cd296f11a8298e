"""Documents in Markdown from templates, in which no value can break out of its place."""

from __future__ import annotations

import json
import re
from typing import Any


class Verbatim(str):
    """A text that is written as it is."""

    __slots__ = ()


def render(package: str, template: str, **values: Any) -> str:
    """Fill in a template that lies beside the modules of a package.

    Every value is escaped and put on one line, unless the filter `verbatim` exempts it; `printed`
    writes numbers and lists for a person.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - Markdown, escaped by finalize
        loader=PackageLoader(package, ""),
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"verbatim": Verbatim, "printed": printed}
    return environment.get_template(template).render(**values)


def printed(value: Any) -> str:
    """Return a value as a person reads it: four digits of a number, the words of a list."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, str) else json.dumps(value)


def escaped(value: Any) -> str:
    """Escape a text so that it can't break out of its cell."""
    if isinstance(value, Verbatim):
        return value
    text = "".join(c if c.isprintable() else " " for c in str(value))
    for character in "\\`|*<[]":
        text = text.replace(character, f"\\{character}")
    return text


def fenced(text: str) -> str:
    """Return a text as a block of its own, out of which no markup of it can break."""
    # The fence is longer than any inside.
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
