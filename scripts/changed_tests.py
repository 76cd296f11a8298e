"""Choose the tests that a change reaches, the nearest by imports first, within two minutes."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Seconds of tests for each core, which leave time for lint and for imports.
SECONDS = 80
# Folders from which modules are imported by their path below them.
_ROOTS = ("include", "dags")


def changed_files(since: str) -> set[str]:
    """Return the files that differ from a commit; "1" is the last commit, or the one before it."""
    if since == "1":
        since = "HEAD" if _git("status", "--porcelain") else "HEAD~1"
    return {*_git("diff", "--name-only", since), *_git("ls-files", "-o", "--exclude-standard")}


def choose(tests: Iterable[str], changed: set[str], seconds: Mapping[str, float]) -> list[str]:
    """Return files of tests by their distance in imports from what has changed."""
    graph = _import_graph()
    # A file of data is read by a module next to it.
    data = {str(Path(name).parent) for name in changed if not name.endswith((".py", ".md"))}
    changed = changed | {name for name in graph if str(Path(name).parent) in data}
    near = {test: distance for test in tests if (distance := _distance(test, changed, graph))}
    folders = {part for name in changed for part in Path(name).parts[2:-1]}

    def order(test: str) -> tuple[int, int, float]:
        return near[test], -len(folders.intersection(Path(test).parts)), seconds[test]

    return sorted(near, key=order)


def fitting(tests: Iterable[str], seconds: Mapping[str, float], most: float) -> list[str]:
    """Return the first tests that take no longer than `most` together, one at least."""
    ordered = list(tests)
    ends = accumulate(seconds[test] for test in ordered)
    return ordered[: max(1, sum(end <= most for end in ends))]


def _distance(test: str, changed: set[str], graph: Mapping[str, set[str]]) -> int:
    """Return 1 for a test that changed or is named like what did, 2 for one of its folder."""
    mirrored = Path("include/tuneline", *Path(test).parts[1:-1])
    subject = Path(test).stem.removeprefix("test_")
    if test in changed or any(subject == Path(name).stem for name in changed):
        return 1
    if any(Path(name).parent == mirrored for name in changed):
        return 2
    reached, seen = {test}, set[str]()
    helpers = {str(folder / "conftest.py") for folder in Path(test).parents} & graph.keys()
    for distance in range(2, len(graph)):
        seen |= reached
        reached = set().union(helpers, *(graph.get(name, set()) for name in reached)) - seen
        helpers = set()
        if reached & changed:
            return distance
        if not reached:
            break
    return 0


def _import_graph() -> dict[str, set[str]]:
    """Return the files that each Python file imports, wherever the import stands."""
    names = _git("ls-files", "-co", "--exclude-standard", "*.py")
    files = {_module(name): name for name in names if (ROOT / name).exists()}
    items = {module.rsplit(".", 1)[-1]: module for module in files if module.count(".") == 2}
    found: dict[str, set[str]] = {}
    for name in files.values():
        said = set(_named(ast.parse((ROOT / name).read_text("utf-8")), name))
        said |= {items[word] for word in said & items.keys() if name.startswith("tests/")}
        found[name] = {files[known] for one in said if (known := _known(one, files))}
    return found


def _named(tree: ast.Module, name: str) -> Iterable[str]:
    package = _module(name).split(".")[: None if name.endswith("__init__.py") else -1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]


def _known(module: str, files: Mapping[str, str]) -> str:
    """Return a module, or the one that holds the name, if it is a file; else nothing."""
    return next((one for one in (module, module.rpartition(".")[0]) if one in files), "")


def _module(name: str) -> str:
    parts = Path(name).with_suffix("").parts[name.startswith(_ROOTS) :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
