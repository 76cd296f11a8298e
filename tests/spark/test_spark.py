"""Spark and this machine leave the same bytes, also if Spark loses a worker or an executor."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from tests.lab.data_runs import chat, clean_rows, text, write_jsonl
from tests.lab.fuzzed_rows import Fuzzer

from tuneline.config import DataConfig
from tuneline.data.gates.expectations import validate
from tuneline.data.gates.suites import Rule, Suite
from tuneline.data.pii.replace.scrubber import make_scrubber
from tuneline.machine.workers import HERE, as_batch, rows_in

ROOT = Path(__file__).parents[2]
SETTINGS = """\
pii_ner: {ner}
pii_profile: [pci, gdpr]
pii_canaries: 20
max_tokens: 400
too_long: split
engine: {engine}
"""


def planted_rows():
    """Rows of every fault: broken lines, personal data, copies, tools, long and mixed ones."""
    fuzzer = Fuzzer(5)
    rows = clean_rows(150)
    rows += [*rows[:9], *({"messages": chat(f"{text(n)} please", "Yes.")} for n in range(9))]
    rows += [{"messages": chat(f"{text(n)} 4111 1111 1111 1111", "No.")} for n in range(300, 320)]
    rows += [{"messages": chat(text(400, 500), "A long one.")}]
    rows += [{"messages": chat(text(401, 250), "One.") + chat(text(402, 250), "Two.")}]
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "tool_calls": [call]}]
    rows += [{"messages": turns, "tools": [tool]}, {"messages": chat("\ud800 half", "One.")}]
    return [*rows, *(fuzzer.nested() for _ in range(10)), b"{", b'{"messages": []}']


def tables(out):
    """The bytes of the tables and documents that `data prepare` leaves."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in Path(out).rglob("*")
        if path.suffix in (".parquet", ".png", ".md") or path.name == "dataset.json"
    }


def prepare(folder, base, engine, **variables):
    config = folder / f"{engine}.yaml"
    config.write_text(SETTINGS.format(engine=engine, ner="false"))
    command = "data prepare --input rows.jsonl --out".split()
    command += [engine, "--base-model", base, "--config", config]
    done = subprocess.run(
        [Path(sys.executable).parent / "tuneline", *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return tables(folder / engine)


def test_a_spark_of_this_machine_leaves_the_same_bytes(tmp_path, base_dir):
    write_jsonl(tmp_path / "rows.jsonl", planted_rows())
    here = prepare(tmp_path, base_dir, "local")
    spark = prepare(tmp_path, base_dir, "spark", SPARK_REMOTE="local[2]")
    assert len(here) > 15
    assert {name for name in here if here[name] != spark.get(name)} == set()
    assert here.keys() == spark.keys()


def test_the_commands_of_the_page(tmp_path):
    page = (ROOT / "docs" / "data.md").read_text().split("\n## On Spark\n")[1].split("\n## ")[0]
    commands = page.split("```bash\nmake setup-spark")[1].split("```")[0].split("\n", 1)[1]
    commands = commands.replace(".venv-spark/bin", str(Path(sys.executable).parent))
    for name in ("spark.yaml", "prepared/"):
        commands = commands.replace(name, str(tmp_path / name))
    # The model and all canaries take minutes.
    more = f"printf 'pii_ner: false\npii_canaries: 20\n' >> {tmp_path}/spark.yaml\nSPARK_REMOTE"
    done = subprocess.run(
        ["bash", "-c", commands.replace("SPARK_REMOTE", more, 1)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "\ndataset " in done.stdout
    assert len(tables(tmp_path / "prepared")) > 15


def executors(processes):
    """Those of the processes that are executors and alive."""
    for process in processes:
        with suppress(psutil.Error):
            if any("CoarseGrainedExecutorBackend" in word for word in process.cmdline()):
                yield process


@pytest.mark.parametrize("kind", ["worker", "executor"])
def test_a_killed_process_loses_no_row(spark, tmp_path, kind):
    begun = tmp_path / "begun"

    def slow():
        def double(batch):
            with begun.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            return as_batch(2 * number for number in rows_in(batch))

        return double

    def kill():
        while not begun.exists() or "\n" not in begun.read_text():
            time.sleep(0.05)
        worker = psutil.Process(int(begun.read_text().split()[0]))
        killed = worker if kind == "worker" else next(executors(worker.parents()))
        killed.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    batches = [as_batch([3 * n, 3 * n + 1, 3 * n + 2]) for n in range(24)]
    found = [number for batch in spark.map(slow, batches) for number in rows_in(batch)]
    killer.join()
    assert found == [2 * number for number in range(72)]
    # Some batch was done twice.
    assert len(begun.read_text().split()) > 24


def test_a_scrubber_takes_its_model_along(spark):
    rows = [
        (None, chat(f"{text(n)}, it's Oksana Petrenko, {n}{n}-555-0192.", "Thank you, Oksana."))
        for n in range(10, 40)
    ]
    scrubber = make_scrubber(DataConfig(source="rows.jsonl"))
    here = list(scrubber.each(rows))
    assert sum(result.hits["PERSON"] for result in here) > 30
    assert list(scrubber.each(rows, engine=spark)) == here


def test_gates_find_the_same(spark, tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.setattr("tuneline.data.gates.expectations.LEAST_ON_SPARK", 0)
    numbers = [float(n) if n % 2 else None for n in range(100)]
    frame = pd.DataFrame(
        {"row_id": [f"r{n}" for n in range(100)], "n": numbers, "same": ["a"] * 100}
    )
    rules = [
        Rule("ExpectTableRowCountToEqual", {"value": 100}),
        Rule("ExpectColumnValuesToBeUnique", {"column": "row_id"}),
        Rule("ExpectColumnValuesToBeUnique", {"column": "same"}),
        Rule("ExpectColumnSumToBeBetween", {"column": "n", "min_value": 0, "max_value": 9}),
        Rule("ExpectColumnMeanToBeBetween", {"column": "n", "min_value": 0, "max_value": 99}),
        Rule("ExpectColumnValuesToBeBetween", {"column": "n", "min_value": 0, "max_value": 50}),
        Rule("ExpectColumnValuesToNotBeNull", {"column": "absent"}),
    ]
    suites = [Suite("rows", frame, rules), Suite("mixed", frame.assign(m=[1, "a"] * 50), rules[:2])]
    here, there = (validate(suites, tmp_path / str(n), (), e) for n, e in enumerate((HERE, spark)))
    assert len(here[1]) == 4
    assert (there[0], sorted(map(str, there[1])), there[2]) == (
        here[0],
        sorted(map(str, here[1])),
        here[2],
    )


def test_what_a_kernel_raises_is_said(spark):
    def broken():
        raise ValueError("this kernel can't be made")

    with pytest.raises(Exception, match="this kernel can't be made"):
        list(spark.map(broken, [pa.record_batch({"row": ["1"]})]))
