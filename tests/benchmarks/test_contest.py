from pathlib import Path

import pytest
from benchmarks.contest.contest import Contest, System, score_results, speed_results
from benchmarks.contest.trial import WARM_UP, Sample

from tuneline.errors import TunelineError

TOYS = "tests.benchmarks.toy_trials"


@pytest.fixture
def contest(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    lines = []
    made = Contest(tmp_path, lines.append, one_core=True)
    made.lines = lines
    return made


def test_systems_run_in_turn_each_in_a_process_of_its_own(contest, tmp_path):
    journal = tmp_path / "journal"
    systems = [System(name, f"{TOYS}:squares", {"name": name}) for name in ("a", "b")]
    samples = contest.measure(systems, {"journal": str(journal)}, 2)
    runs = [line.split() for line in journal.read_text().splitlines()]
    assert [(name, int(count)) for name, _, count in runs] == [
        (name, count) for name in "abab" for count in (WARM_UP, 30)
    ]
    assert len({pid for _, pid, _ in runs}) == 4
    assert [s.scores for s in samples["a"]] == [{"right": 1.0}] * 2
    assert all(s.seconds > 0 and s.items == 30 for s in samples["b"])
    assert len(contest.lines) == 4


def test_one_core_means_one_core(contest, tmp_path):
    system = System("c", f"{TOYS}:cores")
    assert contest.run(system, {}).scores == {"cores": 1}
    free = Contest(tmp_path, print, one_core=False)
    import os

    assert free.run(system, {}).scores == {"cores": len(os.sched_getaffinity(0))}


def test_memory_is_the_worker_s_own_not_its_parent_s(contest, tmp_path):
    ballast = bytearray(300 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    system = System("a", f"{TOYS}:squares", {"name": "a"})
    peak = contest.run(system, {"journal": str(tmp_path / "journal")}).peak_mib
    assert 5 < peak < 150
    assert len(ballast)


def test_a_system_that_fails_says_why(contest):
    with pytest.raises(TunelineError, match="engine fell off"):
        contest.run(System("d", f"{TOYS}:broken"), {})


def test_a_sample_of_an_earlier_run_is_never_taken_for_a_new_one(contest, tmp_path):
    (tmp_path / "sample.json").write_text('{"version": "old"}')
    with pytest.raises(TunelineError):
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
