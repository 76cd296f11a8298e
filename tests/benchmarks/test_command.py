import json

import pytest
from benchmarks.contest import command
from benchmarks.contest.command import BENCHES, load
from benchmarks.contest.report import Report, summarise

from tuneline.cli import main
from tuneline.errors import TunelineError, UserError


def toy(options):
    options.log("measuring")
    speed = summarise("tuneline", "1", "docs_per_s", [2.0], "1/s")
    workload = {"rows": options.rows, "runs": options.runs, "input": str(options.input)}
    return Report(workload, [speed], {"r": 1.0})


def no_data(options):
    raise UserError("there is no run")


def breaks(options):
    raise TunelineError("the peer crashed")


@pytest.fixture
def benches(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    known = {"toy": toy, "lacking": no_data}
    monkeypatch.setattr(command, "BENCHES", known)
    monkeypatch.setattr(command, "load", known.__getitem__)
    return known


def test_every_benchmark_of_the_catalogue_can_be_loaded():
    assert {"dedup", "pii", "tokens", "gateway", "coldstart", "pipeline"} <= BENCHES.keys()
    assert all(callable(load(name)) for name in BENCHES)


def test_json_stands_alone_on_stdout(benches, capsys):
    assert main(["bench", "toy", "--json", "--rows", "5", "--runs", "2"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["workload"]["rows"] == 5
    assert "measuring" in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["toy", "--runs", "0"],
        ["toy", "--rows", "-1"],
        ["toy", "--input", "missing.jsonl"],
        ["lacking"],
    ],
)
def test_a_user_s_mistake_is_one_sentence_and_exit_code_2(benches, capsys, arguments):
    assert main(["bench", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert not output.out


def test_all_goes_on_past_one_that_can_t_be_measured(benches, tmp_path, capsys):
    assert main(["bench", "all"]) == 0
    document = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert [entry["bench"] for entry in document["benches"]] == ["toy", "lacking"]
    assert document["benches"][1]["not_measured"] == "there is no run"
    assert "docs_per_s" in capsys.readouterr().out


def test_all_fails_when_a_benchmark_broke(benches, tmp_path):
    benches["broken"] = breaks
    assert main(["bench", "all"]) == 1
    document = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert document["benches"][2]["not_measured"] == "the peer crashed"


def test_input_goes_with_one_benchmark(benches, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("{}")
    assert main(["bench", "all", "--input", str(source)]) == 2
    assert main(["bench", "toy", "--input", str(source)]) == 0
