import json

from benchmarks.contest.report import NotMeasured, Report, Result, describe, ratio, show, summarise


def report(missing=()):
    results = [
        summarise("tuneline", "1", "docs_per_s", [10.0, 30.0, 20.0], "1/s"),
        summarise("peer", "2", "docs_per_s", [8.0], "1/s"),
    ]
    return Report({"rows": 3, "seed": 7}, results, {"r": 2.5}, missing, "dedup", describe())


def test_json_has_the_form_of_the_contract():
    found = json.loads(json.dumps(report().as_dict()))
    assert list(found)[:5] == ["bench", "machine", "workload", "results", "ratios"]
    assert {"cpu", "cores", "gpu"} <= found["machine"].keys()
    assert found["machine"]["cores"] >= 1
    assert found["results"][0] == {
        "system": "tuneline",
        "version": "1",
        "metric": "docs_per_s",
        "value": 20.0,
        "unit": "1/s",
        "min": 10.0,
        "max": 30.0,
        "runs": 3,
    }
    assert found["not_measured"] == []


def test_ratios_are_of_medians_and_missing_without_a_peer():
    results = report().results
    assert ratio(results, "docs_per_s", "tuneline", "peer") == 2.5
    assert ratio(results, "docs_per_s", "tuneline", "nobody") is None
    nothing = Result("zero", "1", "docs_per_s", 0.0, "1/s", 0.0, 0.0, 1)
    assert ratio([*results, nothing], "docs_per_s", "tuneline", "zero") is None


def test_the_table_names_what_was_not_measured_and_why(capsys):
    show(report([NotMeasured("rensa", "not installed", ("docs_per_s_vs_rensa",))]))
    output = capsys.readouterr().out
    assert "20 (10 to 30)" in output
    assert "rensa: not installed (no docs_per_s_vs_rensa)" in output
