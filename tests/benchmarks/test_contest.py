"""The command, the contest of systems in processes, and the report."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks.contest import command
from benchmarks.contest.command import BENCHES, load
from benchmarks.contest.contest import Contest, Options, System, score_results, speed_results
from benchmarks.contest.report import NotMeasured, Report, describe, ratios_of, show, summarise
from benchmarks.contest.trial import WARM_UP, Sample

from tuneline.cli import main
from tuneline.errors import TunelineError, UserError

TOYS = "tests.benchmarks.toy_trials"


@pytest.fixture
def contest(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    return Contest(Options(tmp_path, print), one_core=True)


def test_systems_run_in_turn_each_in_a_separate_process(contest, tmp_path, capsys):
    journal = tmp_path / "journal"
    systems = [System(name, f"{TOYS}:squares", {"name": name}) for name in ("a", "b")]
    samples = contest.measure(systems, {"journal": str(journal), "seed": 7}, 2)
    runs = [line.split() for line in journal.read_text().splitlines()]
    assert [(name, int(seed), int(count)) for name, seed, _, count in runs] == [
        (name, seed, count) for seed in (7, 8) for name in "ab" for count in (WARM_UP, 30)
    ]
    assert len({pid for _, _, pid, _ in runs}) == 4
    assert [s.scores for s in samples["a"]] == [{"right": 1.0}] * 2
    assert all(s.seconds > 0 and s.items == 30 for s in samples["b"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_one_core_means_one_core(contest, tmp_path):
    system = System("c", f"{TOYS}:cores")
    assert contest.run(system, {}).scores == {"cores": 1}
    free = Contest(Options(tmp_path, print), one_core=False)
    assert free.run(system, {}).scores == {"cores": len(os.sched_getaffinity(0))}


def test_memory_is_the_worker_s_own_not_its_parent_s(contest, tmp_path):
    ballast = bytearray(300 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    system = System("a", f"{TOYS}:squares", {"name": "a", "seed": 1})
    peak = contest.run(system, {"journal": str(tmp_path / "journal")}).peak_mib
    assert 5 < peak < 150
    assert len(ballast)


def test_a_system_that_fails_says_why_and_leaves_no_earlier_sample(contest, tmp_path):
    (tmp_path / "sample.json").write_text('{"version": "old"}')
    with pytest.raises(TunelineError, match="engine fell off"):
        contest.run(System("d", f"{TOYS}:broken"), {})
    assert not (tmp_path / "sample.json").exists()


def test_speed_is_amount_over_seconds_and_the_median_counts():
    runs = [Sample("1", 100, seconds, 2.0, 50.0, {"recall": 0.5}) for seconds in (1.0, 10.0, 2.0)]
    found = {r.metric: r for r in speed_results({"a": runs}, "docs")}
    speed = found["docs_per_s"]
    assert (speed.value, speed.min, speed.max, speed.runs) == (50.0, 10.0, 100.0, 3)
    assert found["docs_per_cpu_s"].value == 50.0
    assert speed_results({"a": runs}, "tokens", 1000)[0].value == 500.0
    assert [r.value for r in score_results("a", runs)] == [0.5]


def report(missing=()):
    results = [
        summarise("tuneline", "1", "docs_per_s", [10.0, 30.0, 20.0], "1/s"),
        summarise("peer", "2", "docs_per_s", [8.0], "1/s"),
        summarise("zero", "2", "docs_per_s", [0.0], "1/s"),
    ]
    about = {"bench": "dedup", "machine": describe()}
    return Report({"rows": 3, "seed": 7}, results, {"r": 2.5}, missing, **about)


def test_json_has_the_form_of_the_contract():
    found = json.loads(json.dumps(asdict(report())))
    assert list(found)[:5] == ["bench", "machine", "workload", "results", "ratios"]
    assert {"cpu", "cores", "gpu"} <= found["machine"].keys()
    expected = {"value": 20.0, "unit": "1/s", "min": 10.0, "max": 30.0, "runs": 3}
    names = {"system": "tuneline", "version": "1", "metric": "docs_per_s"}
    assert found["results"][0] == {**names, **expected}
    assert found["not_measured"] == []


def test_ratios_are_of_medians_and_missing_without_a_peer():
    table = {name: ("docs_per_s", "tuneline", name) for name in ("peer", "nobody", "zero")}
    assert ratios_of(report().results, table) == {"peer": 2.5}


def test_the_table_names_what_was_not_measured_and_why(capsys):
    show(report([NotMeasured("rensa", "not installed", ("docs_per_s_vs_rensa",))]))
    output = capsys.readouterr().out
    assert "20 (10 to 30)" in output
    assert "rensa: not installed (no docs_per_s_vs_rensa)" in output


def toy(options):
    options.log("measuring")
    speed = summarise("tuneline", "1", "docs_per_s", [2.0], "1/s")
    return Report({"rows": options.rows, "runs": options.runs}, [speed], {"r": 1.0})


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


def test_every_benchmark_of_the_contract_can_be_loaded():
    names = "dedup pii tokens data train gateway coldstart pipeline drift"
    assert set(names.split()) == set(BENCHES)
    assert all(callable(load(name)) for name in BENCHES)


def test_json_stands_alone_on_stdout(benches, capsys):
    assert main(["bench", "toy", "--json", "--rows", "5", "--runs", "2"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["workload"]["rows"] == 5
    assert "measuring" in output.err


@pytest.mark.parametrize(
    "words",
    [
        "nothing",
        "toy --runs 0",
        "toy --rows -1",
        "toy --input missing.jsonl",
        "lacking",
        "all --input rows.jsonl",
    ],
)
def test_a_user_s_mistake_is_one_sentence_and_exit_code_2(benches, capsys, words):
    Path("rows.jsonl").write_text("{}")
    assert main(["bench", *words.split()]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert not output.out


@pytest.mark.parametrize(("last", "code"), [(no_data, 0), (breaks, 1)])
def test_all_goes_on_past_one_that_can_t_be_measured(benches, tmp_path, capsys, last, code):
    benches["last"] = last
    assert main(["bench", "all"]) == code
    document = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert [entry["bench"] for entry in document["benches"]] == ["toy", "lacking", "last"]
    reasons = [entry.get("not_measured") for entry in document["benches"][1:]]
    assert reasons == ["there is no run", {0: "there is no run", 1: "the peer crashed"}[code]]
    assert "docs_per_s" in capsys.readouterr().out
