"""python -m benchmarks.faults.guests table [GUEST …]: guests through `tuneline data prepare`.

Prints a Markdown table: what became of the clean rows and the planted faults, and the verdicts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.guests.families import FAMILIES, write_base
from benchmarks.faults.guests.guest import DATA_ITEMS, Guest
from benchmarks.faults.guests.outcome import Outcome, read_outcome
from benchmarks.faults.guests.shapes import SHAPES, guest

_PRESET = Path(__file__).parents[3] / "config" / "presets" / "laptop.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a guest's verdicts, rows or faults are not as they should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.guests", description=__doc__)
    parser.add_argument("action", choices=("table",))
    parser.add_argument("guests", nargs="*", metavar="GUEST", help="these alone")
    parser.add_argument("--family", default="qwen2_5", choices=sorted(FAMILIES), metavar="NAME")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="other rows (1)")
    parser.add_argument("--rows", type=int, metavar="N", help="clean rows, in place of the shape's")
    chosen = parser.parse_intermixed_args(arguments)
    names = [name for name in SHAPES if name in (chosen.guests or SHAPES)]
    if unknown := sorted(set(chosen.guests) - SHAPES.keys()):
        parser.error(f"no guest is called {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    family = FAMILIES[chosen.family]
    print("| guest | clean rows kept | torn answers | faults found |", " | ".join(DATA_ITEMS), "|")
    print("|---" * (4 + len(DATA_ITEMS)) + "|", flush=True)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(family, Path(folder, "base"), weights=False)
        for name in names:
            trial = guest(name, chosen.seed, chosen.rows, family.end)
            outcome = prepared(trial, base, Path(folder, name))
            print(row_of(trial, outcome), flush=True)
            good &= not problems(trial, outcome)
            for problem in problems(trial, outcome):
                print(f"{name}: {problem}", file=sys.stderr, flush=True)
    return 0 if good else 1


def settings_of(trial: Guest) -> dict[str, Any]:
    """Return the configuration of the laptop with the settings that the guest names."""
    document: dict[str, Any] = yaml.safe_load(_PRESET.read_text(encoding="utf-8"))
    return {**document, "data": {**document["data"], **trial.settings}}


def prepared(trial: Guest, base: Path, folder: Path) -> Outcome:
    """Run `tuneline data prepare` over the guest's rows.

    Raises:
        RuntimeError: if the call left no result; with what it said.
    """
    folder.mkdir()
    config, out = folder / "settings.yaml", folder / "out"
    config.write_text(yaml.safe_dump(settings_of(trial)))
    rows = trial.write(folder / "rows.jsonl")
    command = [sys.executable, "-m", "tuneline.cli", "data", "prepare", "--input", str(rows)]
    command += ["--base-model", str(base), "--out", str(out), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (out / "result.json").exists():
        raise RuntimeError(f"{trial.name}: {done.stderr}")
    return read_outcome(trial, out)


def row_of(trial: Guest, outcome: Outcome) -> str:
    """Return the guest's line of the table; a verdict that is not right is bold."""
    sampled = f" ({outcome.sampled} more sampled down)" if outcome.sampled else ""
    found = len(trial.faults) - len({text.split(":")[0] for text in outcome.missed})
    wrong = outcome.wrong_verdicts(trial)
    verdicts = [
        f"**{outcome.verdicts[item]}**" if item in wrong else outcome.verdicts[item]
        for item in DATA_ITEMS
    ]
    kept = f"{outcome.kept} of {outcome.clean}{sampled}"
    cells = [trial.name, kept, str(len(outcome.torn)), f"{found} of {len(trial.faults)}", *verdicts]
    return f"| {' | '.join(cells)} |"


def problems(trial: Guest, outcome: Outcome) -> list[str]:
    """Return what is not as it should be, in words."""
    said = [f"{item} is {verdict}" for item, verdict in outcome.wrong_verdicts(trial).items()]
    if outcome.kept_share < 0.97:
        said.append(f"keeps {outcome.kept_share:.1%} of its clean rows: {dict(outcome.lost)}")
    if outcome.torn:
        line, word = outcome.torn[0]
        said.append(f"{len(outcome.torn)} answers are torn, the first in line {line}: {word!r}")
    return said + [f"fault not found: {text}" for text in outcome.missed]


if __name__ == "__main__":
    sys.exit(main())
