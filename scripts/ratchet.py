"""The size of the house, which may only fall: compare it with scripts/ratchet.json, or lower that.

python scripts/ratchet.py          exit code 1, and a line for each number that has grown
python scripts/ratchet.py --lower  write the numbers of today where they are lower
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = Path(__file__).with_name("ratchet.json")
DURATIONS = ROOT / "tests" / "durations.json"
MAX_FILES, MAX_LINES = 25, 40
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> int:
    """Compare or lower the numbers; return the exit code."""
    today, known = measure(), json.loads(NUMBERS.read_text())
    if today and "--lower" in sys.argv[1:]:
        known = {name: min(value, known.get(name, value)) for name, value in today.items()}
        NUMBERS.write_text(json.dumps(known, indent=1) + "\n")
    grown = [name for name, value in today.items() if value > known.get(name, 0)]
    for name in grown:
        print(f"{name}: {today[name]}, and may not be above {known.get(name, 0)}")
    if grown:
        print("the house only shrinks: take out what the new code replaces (scripts/ratchet.json)")
    elif today != known:
        print("the house has shrunk: `make ratchet` keeps it so")
    return bool(grown)


def measure() -> dict[str, int]:
    """Count the Python files that git knows."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}  # a checkout without git, which can't have grown
    counts: Counter[str] = Counter()
    folders: Counter[Path] = Counter()
    for path in filter(Path.exists, (ROOT / name for name in done.stdout.split())):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        part = "tests" if "tests" in path.relative_to(ROOT).parts else "product"
        part = "proofs" if path.is_relative_to(ROOT / "benchmarks" / "faults") else part
        counts[f"{part}: lines of code"] += len(code_lines(source, tree))
        counts[f"{part}: files"] += 1
        folders[path.parent] += part == "product" and path.name != "__init__.py"
        if part == "product":
            long = [body_lines(node) > MAX_LINES for node in ast.walk(tree)]
            counts[f"product: functions of more than {MAX_LINES} lines"] += sum(long)
    counts[f"product: folders of more than {MAX_FILES} files"] = sum(
        size > MAX_FILES for size in folders.values()
    )
    counts["tests: seconds of those over 10 s"] = sum(json.loads(DURATIONS.read_text()).values())
    return dict(sorted(counts.items()))


def code_lines(source: str, tree: ast.Module) -> list[int]:
    """Return the numbers of the lines that are not blank, comment or docstring."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *_DEFINITIONS)) and docstring(node):
            inside |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.split("\n"), 1)
    texts = ((number, line.strip()) for number, line in lines)
    return [n for n, line in texts if line and not line.startswith("#") and n not in inside]


def body_lines(node: ast.AST) -> int:
    """Return how many lines the body of a function has, without its docstring; 0 of others."""
    if not isinstance(node, _DEFINITIONS):
        return 0
    statements = node.body[1:] if docstring(node) else node.body
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1 if statements else 0


def docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True if a definition begins with a docstring."""
    return ast.get_docstring(node, clean=False) is not None


if __name__ == "__main__":
    sys.exit(main())
