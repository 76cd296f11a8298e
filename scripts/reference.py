"""Write docs/reference from the code, the picture in docs/run.md and the table in README.md.

`make docs` runs it in the ML environment. With `--check` it writes nothing and ends with 1
when a page is not current.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tuneline.catalogue import ITEMS, RUN_ORDER, Group
from tuneline.cli import parser
from tuneline.config import ModelFile, PipelineConfig, User
from tuneline.config.section import Limit, described
from tuneline.evidence import Evidence, Record

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "run.md"
_MADE = "*Written by `make docs` from the code; don't edit it by hand.*"
# argparse breaks lines at the width of the terminal, which is not the reader's.
_HELP_WIDTH = 100

_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Any: "anything",
    User: "user",
}
# How pydantic's bounds are read, by the names of their values.
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_SIGNS |= {"min_length": "at least", "max_length": "at most"}
_CONTAINERS = {list: "list of", dict: "map to", tuple: "pair of"}


def pages() -> dict[Path, str]:
    """Return the text of each page, by its file."""
    made = {
        "settings.md": settings_page(),
        "model-files.md": model_files_page(),
        "cli.md": cli_page(),
        "evidence.md": evidence_page(),
        "settings.schema.json": schema_of(PipelineConfig),
        "model-file.schema.json": schema_of(ModelFile),
    }
    return {
        **{FOLDER / name: text for name, text in made.items()},
        PICTURE: _between(PICTURE, "```mermaid\n", run_picture(), "\n```\n"),
        README: _between(README, "|---|---|---|\n", items_table(), "\n\n"),
    }


def _between(path: Path, start: str, text: str, end: str) -> str:
    """Return a page with the text between two marks replaced."""
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    return f"{before}{start}{text}{end}{rest.partition(end)[2]}"


def items_table() -> str:
    """Return the rows of the table of items: phase, what the item proves, its severity."""
    return "\n".join(
        f"| {item.phase} | [{item.title}](docs/{item.phase}.md#{item.id}) | {item.severity} |"
        for item in ITEMS
    )


def schema_of(model: type[BaseModel]) -> str:
    """Return a JSON Schema for editors; files are layers, so they need not state everything."""
    for part in _below(model):
        described(part)
        part.model_rebuild(force=True)
    schema: dict[str, Any] = model.model_json_schema()
    # A name alone is enough, and ids may be numbers.
    user = schema["$defs"]["User"]
    user["properties"]["id"] = {"type": ["string", "integer", "null"]}
    schema["$defs"]["User"] = {"anyOf": [{"type": "string"}, user]}
    if model is ModelFile:
        schema["properties"]["settings"] = {"$ref": "settings.schema.json"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(_lenient(schema), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the models that a model has, those of the leaves first, and it."""
    for _, part in _nested(model):
        yield from _below(part)
    yield model


def _lenient(schema: Any) -> Any:
    """Return a schema without required fields, titles that repeat names, defaults of sections."""
    if isinstance(schema, list):
        return [_lenient(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = {"required", "title"} | ({"default"} if "$ref" in schema else set())
    return {
        key: {name: _lenient(part) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _lenient(value)
        for key, value in schema.items()
        if key not in left_out
    }


def run_picture() -> str:
    """Return the steps of a run and their order as a Mermaid diagram, from the catalogue."""
    groups = {step.id: step.group for step in RUN_ORDER}
    within: dict[Group, dict[str, list[str]]] = {group: {} for group in Group}
    across: dict[str, list[str]] = {}
    for step in RUN_ORDER:
        for earlier in step.after:
            edges = within[step.group] if groups[earlier] == step.group else across
            edges.setdefault(earlier, []).append(step.id)
    lines = ["flowchart TB"]
    for group, edges in within.items():
        lines += [f"  subgraph {group}", *(f"    {chain}" for chain in _chains(edges)), "  end"]
    return "\n".join([*lines, *(f"  {chain}" for chain in _chains(across))])


def _chains(edges: dict[str, list[str]]) -> Iterator[str]:
    """Yield lines that draw each edge once, as long as they go."""
    for start in list(edges):
        last, line = [start], start
        while len(last) == 1 and last[0] in edges:
            last = edges.pop(last[0])
            line += f" --> {' & '.join(last)}"
        if last != [start]:
            yield line


def settings_page() -> str:
    """Return a table of every setting of a run, one for each section."""
    lines = _head(
        "Settings",
        "A run starts from a preset of [config/presets](../../config/presets); above it lie the",
        "model's file, then YAML settings (`--config`, `CONFIG=`, the form's field *overrides*),",
        "then fields of the trigger form and options of the command line. A field or option and",
        "YAML settings that disagree about a setting are refused, with both places named. An",
        "unknown key is refused. The code is in",
        "[include/tuneline/config](../../include/tuneline/config).",
    )
    lines += ["## Top level", ""]
    sections = {
        name: field.annotation
        for name, field in PipelineConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    lines += _table(PipelineConfig, sections)
    for name, model in sections.items():
        lines += _section(f"## {name}", model)
        for key, nested in _nested(model):
            lines += _section(f"### {name}.{key}", nested)
    for key, nested in _nested(PipelineConfig):
        if key not in sections:
            lines += _section(f"## {key}, each entry", nested)
    return "\n".join(lines) + "\n"


def model_files_page() -> str:
    """Return a table of every field of a model's file, one for each section."""
    lines = _head(
        "Model files",
        "`config/models/<name>.yaml`, one for each model in production; see",
        "[config/models](../../config/models/README.md) and [Operations](../operations.md).",
    )
    nested = dict(_nested(ModelFile))
    lines += _table(ModelFile, nested)
    for name, section in nested.items():
        lines += _section(f"## {name}", section)
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Return the help of every command."""
    lines = _head("Command line", "`.venv-ml/bin/tuneline` after `make setup`.")
    lines += [
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | the command did its work; for `tuneline step` and `tuneline run`, a verdict was "
        "reached (an item that isn't critical fails if its step breaks) |",
        "| 1 | a critical item failed, or a step broke that the run can't do without |",
        "| 2 | the input or a setting is wrong; trying again does not help |",
        "| 75 | the store, a server or the disk was not available; worth another try |",
        "",
    ]
    for command, what in _commands(parser()):
        lines += [f"## {command.prog}", "", _sentence(what), ""]
        lines += ["```text", _help(command), "```", ""]
    return "\n".join(lines[:-1]) + "\n"


def evidence_page() -> str:
    """Return the fields of `evidence.json` and `record.json`."""
    lines = _head(
        "Evidence",
        "Every item leaves `<run>/<phase>/<item>/evidence.json`. Every helper step leaves",
        "`record.json`, which has no severity and no verdict. The JSON Schema is",
        "[evidence.schema.json](../../include/tuneline/evidence.schema.json); a file that does not",
        "fit it is refused.",
    )
    schema = Evidence.model_json_schema(by_alias=True)
    lines += ["## evidence.json", "", *_schema_table(schema)]
    lines += ["", "## record.json", "", *_schema_table(Record.model_json_schema(by_alias=True))]
    for name, definition in schema["$defs"].items():
        described = " ".join(definition.get("description", "").split())
        lines += ["", f"## {name}", "", described, ""]
        if "enum" in definition:
            lines.append(f"One of {', '.join(f'`{value}`' for value in definition['enum'])}.")
        else:
            lines += _schema_table(definition)
    return "\n".join(lines) + "\n"


def _head(title: str, *text: str) -> list[str]:
    return [f"# {title}", "", _MADE, "", *text, ""]


def _section(title: str, model: type[BaseModel]) -> list[str]:
    return ["", title, "", _first_sentence(model), "", *_table(model)]


def _table(model: type[BaseModel], without: Collection[str] = ()) -> list[str]:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in described(model).items():
        if name in without:
            continue
        sections = map(_first_sentence, _models(field.annotation))
        lines.append(
            f"| `{name}` | {_type(field.annotation)}{_bounds(field)} | {_default(field)} "
            f"| {_cell(field.description or next(sections, ''))}{_limit(field)} |"
        )
    return lines


def _limit(field: FieldInfo) -> str:
    """Return that the policy bounds a field, and which way is stricter; empty for others."""
    marks = (mark for mark in field.metadata if isinstance(mark, Limit))
    said = {"within": "only what the policy lists", "includes": "all that the policy lists"}
    how = (said.get(mark.stricter, f"stricter is {mark.stricter}") for mark in marks)
    return next((f" **Limit, {text}.**" for text in how), "")


def _nested(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the models that stand below fields of a section."""
    for name, field in model.model_fields.items():
        for part in _models(field.annotation):
            yield name, part


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in arguments if part is not NoneType)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is tuple and arguments[-1] is ...:
        return f"list of {_type(arguments[0])}"
    if origin in _CONTAINERS:
        return f"{_CONTAINERS[origin]} {_type(arguments[-1])}"
    return _NAMES.get(annotation, "a section")


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(mark, name)}"
        for mark in field.metadata
        for name, sign in _SIGNS.items()
        if hasattr(mark, name)
    ]
    return f", {' and '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    if field.default_factory is not None:
        return "from the environment"
    return f"`{json.dumps(field.default)}`"


def _first_sentence(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _commands(
    command: argparse.ArgumentParser, what: str = ""
) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield a command and its line of help, or those of the commands below it."""
    below = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield command, what
    for action in below:
        texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            yield from _commands(sub, texts.get(name, ""))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _help(command: argparse.ArgumentParser) -> str:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=_HELP_WIDTH)
    return command.format_help().rstrip()


def _schema_table(schema: dict[str, Any]) -> list[str]:
    required = set(schema.get("required", ()))
    lines = ["| field | type | always there |", "|---|---|---|"]
    for name, entry in schema["properties"].items():
        there = "yes" if name in required or "const" in entry else "no"
        lines.append(f"| `{name}` | {_schema_type(entry)} | {there} |")
    return lines


def _schema_type(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_schema_type(part) for part in entry["anyOf"])
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if entry.get("type") == "array":
        return f"list of {_schema_type(entry['items'])}"
    return str(entry.get("type", "anything"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the pages, or compare them."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    check = arguments.parse_args().check
    stale = []
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'not current' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
