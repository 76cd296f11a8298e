"""The floors as `pyproject.toml` names them, and the picture of them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def contracts():
    """The import contracts, by id."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {c["id"]: c for c in settings["tool"]["importlinter"]["contracts"]}


def floors():
    """The floors from the top, each a list of modules."""
    return [[m.strip() for m in layer.split("|")] for layer in contracts()["floors"]["layers"]]


def picture():
    """The floors as a Mermaid diagram."""
    names = [
        " · ".join(module.removeprefix("tuneline.") for module in modules) for modules in floors()
    ]
    boxes = [f'  f{number}["{name}"]' for number, name in enumerate(names)]
    arrows = " --> ".join(f"f{number}" for number in range(len(names)))
    return "\n".join(["```mermaid", "flowchart TB", *boxes, f"  {arrows}", "```"])
