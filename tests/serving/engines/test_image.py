"""The image holds everything that the steps import which start the engine."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from tuneline.catalogue import STEPS

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "docker/tensorrt-llm.Dockerfile"
# `tuneline bench` is no step; GLiNER is for those who install it, since its pins fit no image; what
# signs releases (requirements/signing.txt) is for those who sign, Presidio for those who wrote
# recognisers for it (requirements/presidio.txt), Spark for those whose data need it.
_SIGNING = {"model_signing", "sigstore", "securesystemslib"}
_PRESIDIO = {"presidio_analyzer", "spacy"}
_DATA = {"pyspark", "grpc"}
_NOT_IN_IMAGES = {"benchmarks", "gliner", *_SIGNING, *_PRESIDIO, *_DATA}


def foreign_imports(modules: list[str]) -> set[str]:
    """The packages of others that modules import, directly or through modules of ours."""
    found: set[str] = set()
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        path = ROOT / "include" / module.replace(".", "/")
        file = next(filter(Path.is_file, (path / "__init__.py", path.with_suffix(".py"))), None)
        if module in seen or file is None:
            continue
        seen.add(module)
        for name in imported(file):
            top = name.partition(".")[0]
            if top == "tuneline":
                parts = name.split(".")
                todo += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            elif top not in sys.stdlib_module_names:
                found.add(top)
    return found - _NOT_IN_IMAGES


def imported(path: Path) -> Iterator[str]:
    """The names that a file imports, also within its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def key(name: str) -> str:
    return re.split(r"[^\w.-]", name.strip())[0].lower().replace("_", "-").replace(".", "-")


def installed(dockerfile: str) -> set[str]:
    """The distributions that a Dockerfile's pip installs, with what they depend on."""
    lines = " ".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    todo: list[str] = []
    for file in re.findall(r"-r (requirements/\S+\.txt)", lines):
        named = (ROOT / file).read_text(encoding="utf-8").splitlines()
        todo += [key(line) for line in named if line and not line.startswith("#")]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                todo += [key(one) for one in requires(name) or [] if "extra ==" not in one]
    return found


def lacking(dockerfile: str) -> set[str]:
    """The packages that the engine's steps import and the image has not."""
    steps = [step.module for step in STEPS if step.engine]
    assert len(steps) == 13
    have, providers = installed(dockerfile), packages_distributions()
    asked = foreign_imports([*steps, "tuneline.cli", "tuneline.serving.gateway.app.server"])
    return {name for name in asked if not have & {key(d) for d in providers.get(name, [name])}}


def test_the_image_holds_what_the_steps_import():
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert lacking(text) == set()
    bare = text.replace("-r requirements/ml.txt", "")
    assert {"peft", "transformers", "starlette", "pyarrow", "matplotlib"} <= lacking(bare)
    # NVIDIA's Python keeps its packages.
    assert set(re.findall(r"pip (\S+ \S+) install", text)) == {"--python /opt/tuneline/venv"}
