"""The size of the house may only fall: each number that grows is named, and lowering keeps it."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "ratchet.py"


@pytest.fixture
def house(tmp_path, monkeypatch):
    """The script over a small repository whose numbers are those of today."""
    spec = importlib.util.spec_from_file_location("ratchet", SCRIPT)
    ratchet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ratchet)
    for name, path in (("ROOT", tmp_path), ("NUMBERS", tmp_path / "ratchet.json")):
        monkeypatch.setattr(ratchet, name, path)
    monkeypatch.setattr(ratchet, "DURATIONS", tmp_path / "durations.json")
    ratchet.DURATIONS.write_text('{"tests/test_a.py": 20}')
    for folder in ("include", "tests", "benchmarks/faults"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text('"""A."""\n\n# Why.\nx = 1\n')
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    ratchet.NUMBERS.write_text(json.dumps(ratchet.measure()))
    return ratchet


@pytest.mark.parametrize(
    ("plant", "number"),
    [
        ({"include/a.py": "x = 1\ny = 2\n"}, "product: lines of code: 2, "),
        ({"tests/a.py": "x = 1\ny = 2\n"}, "tests: lines of code: 2, "),
        ({"include/b.py": '"""Empty."""\n'}, "product: files: 2, "),
        ({"benchmarks/faults/a.py": "x = 1\ny = 2\n"}, "proofs: lines of code: 2, "),
        ({f"include/f{n}.py": "" for n in range(25)}, "folders of more than 25 files: 1, "),
        ({"include/a.py": "def f():\n" + " x = 1\n" * 41}, "functions of more than 40 lines: 1, "),
        ({"durations.json": '{"tests/test_a.py": 21}'}, "seconds of those over 10 s: 21, "),
    ],
)
def test_a_number_that_grows_is_named(house, plant, number, capsys):
    assert house.main() == 0
    for name, text in plant.items():
        (house.ROOT / name).write_text(text)
    assert house.main() == 1
    assert number in capsys.readouterr().out


def test_lowering_keeps_what_fell_and_raises_nothing(house, monkeypatch):
    (house.ROOT / "include/a.py").write_text("")
    (house.ROOT / "tests/a.py").write_text("x = 1\ny = 2\n")
    monkeypatch.setattr(house.sys, "argv", ["ratchet.py", "--lower"])
    assert house.main() == 1
    known = json.loads(house.NUMBERS.read_text())
    assert (known["product: lines of code"], known["tests: lines of code"]) == (0, 1)
