import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import answer, chat, clean_rows, code, text, write_jsonl
from tests.lab.fuzzed_rows import fuzzed_lines
from tests.lab.hostile_texts import REPEATED, filled, hostile_texts, seconds
from tests.lab.runs import IN_PRODUCTION

from tuneline.catalogue import DATA_ORDER, ITEMS
from tuneline.cli import main as cli
from tuneline.data import distribution_balancing
from tuneline.data.prepare import prepare
from tuneline.data.sample import SUPPORT
from tuneline.errors import UserError
from tuneline.evidence import load_evidence

DATA_ITEMS = {item.id for item in ITEMS if item.phase == "data"}
SETTINGS = (
    "pii_ner: false\npii_profile: [pci]\nmax_tokens: 2048\npii_canaries: 20\npii_max_left: null\n"
)


@pytest.fixture
def call(tmp_path, base_dir, monkeypatch, policy):
    """Runs prepare over rows (or a file) in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    # What leaks of a few canaries is not the subject here, and a looser limit would warn.
    policy(limits={"data": {"pii_max_left": None}})
    (tmp_path / "config.yaml").write_text(SETTINGS)

    def run(rows, out="out", base=base_dir, config="config.yaml", name="rows.jsonl"):
        if not isinstance(rows, str):
            rows = write_jsonl(tmp_path / name, rows).name
        return prepare(rows, str(base), Path(out), Path(config) if config else None)

    return run


def table(out, name):
    return pq.read_table(Path(out) / name).to_pylist()


def places(rows):
    return {(r["source_file"], r["source_line"]) for r in rows}


def check_conservation(out, lines):
    kept = table(out, "dataset.parquet")
    gone = table(out, "quarantine/rejected.parquet")
    assert len(kept) + len(gone) == lines
    assert places(kept).isdisjoint(places(gone))
    assert {line for _, line in places(kept) | places(gone)} == set(range(1, lines + 1))
    assert all(r["reason"] and r["item"] in DATA_ITEMS for r in gone)
    return kept, gone


def snapshot(out):
    """The bytes of what prepare leaves, but for what tells the time."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(out).rglob("*")
        if path.suffix in (".parquet", ".png", ".md") or path.name == "dataset.json"
    }


def test_the_contract(call, capsys, tmp_path):
    rows = [*clean_rows(120), b"{", {"messages": chat("a", "  ")}]
    assert call(rows) == 0
    kept, gone = check_conservation("out", 122)
    columns = "row_id messages split label weight n_tokens source_file source_line"
    assert " ".join(kept[0]) == columns
    assert " ".join(gone[0]) == "row_id item reason source_file source_line raw"
    assert kept[0]["source_file"] == "rows.jsonl"
    assert [g["raw"] for g in gone] == ["{", json.dumps(rows[-1])]
    assert {r["split"] for r in kept} == {"train", "validation", "holdout"}
    for item in DATA_ITEMS:
        raw = Path("out", item, "evidence.json").read_bytes()
        evidence = load_evidence(raw, item)
        assert evidence.verdict == "pass"
        for ref in evidence.artifacts:
            path = Path(ref.uri.removeprefix("file://"))
            assert hashlib.sha256(path.read_bytes()).hexdigest() == ref.sha256
        gate = json.loads(Path("out", item, "gate.json").read_text())
        assert Path(gate["docs"].removeprefix("file://")).is_file()
    assert not list(Path("out").glob(".*"))
    told = json.loads(Path("out/dataset.json").read_text())
    assert told["version"] in Path("out/dataset_card.md").read_text()
    (source,) = told["sources"]
    assert source["sha256"] == hashlib.sha256(Path("rows.jsonl").read_bytes()).hexdigest()
    assert sum(step["rows"] for step in told["removed"]) == len(gone)
    shown = capsys.readouterr()
    results = shown.out.splitlines()
    assert [line.split()[0] for line in results] == [*DATA_ORDER, "dataset"]
    # On a terminal and in a merged log no line comes twice.
    progress = [line for line in shown.err.splitlines() if not line.startswith("[")]
    assert [line.split()[0] for line in progress] == [*DATA_ORDER, "final_audit"]
    assert not set(results) & set(progress)


def test_json_through_the_command_line(call, capsys, tmp_path, base_dir):
    write_jsonl(tmp_path / "rows.jsonl", clean_rows(60))
    arguments = ["data", "prepare", "--input", "rows.jsonl", "--base-model", str(base_dir)]
    assert cli([*arguments, "--out", "out", "--config", "config.yaml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"] == "pass"
    assert {item["item"] for item in result["items"]} == DATA_ITEMS
    assert result["dataset"]["rows"] == 60
    assert cli([*arguments, "--out", "out", "--config", "none.yaml"]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err


def test_a_critical_failure_is_exit_code_1_with_everything_told(call):
    rows = [*clean_rows(40), *([b"{"] * 40)]
    assert call(rows) == 1
    check_conservation("out", 80)
    result = json.loads(Path("out/result.json").read_text())
    assert result["verdict"] == "fail"


def test_all_rejected(call, capsys):
    assert call([b"{", b"nope", b"\xff"]) == 1
    assert not Path("out/dataset.parquet").exists()
    assert len(table("out", "quarantine/rejected.parquet")) == 3
    evidence = load_evidence(Path("out/schema_validation/evidence.json").read_bytes(), "x")
    assert evidence.verdict == "fail"
    shown = capsys.readouterr().out
    assert "No row of rows.jsonl can be trained on" in shown
    assert "the first in line 1 (broken_json)" in shown
    assert "schema_validation failed and stopped the run before it" in shown
    assert not Path("out/pii_scrubbing").exists()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"rows": "none.jsonl"}, "does not exist"),
        ({"rows": "."}, "is a folder"),
        ({"rows": "rows.txt"}, "unknown format"),
        ({"base": "nowhere"}, "is no directory"),
        ({"base": "ftp://x"}, "unknown scheme"),
        ({"config": "none.yaml"}, "does not exist"),
        ({"config": "wrong.yaml"}, "data.max_tokens"),
        ({"config": "unknown.yaml"}, r"unknown\.yaml: data\.colour: there is no such setting"),
        ({"config": "scalar.yaml"}, r"scalar\.yaml: data: expected settings .*got 5"),
        ({"rows": ""}, "no dataset was named"),
        ({"base": ""}, "no base model was named"),
        ({"out": "file"}, "is a file"),
    ],
)
def test_wrong_usage_leaves_nothing(call, tmp_path, case, words):
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "wrong.yaml").write_text("data: {max_tokens: many}")
    (tmp_path / "scalar.yaml").write_text("data: 5")
    (tmp_path / "unknown.yaml").write_text("data: {colour: red}")
    with pytest.raises(UserError, match=words):
        call(**{"rows": clean_rows(3), **case})
    assert not (tmp_path / "out").exists()


def test_wrong_usage_keeps_what_was_there(call):
    assert call(clean_rows(60)) == 0
    before = snapshot("out")
    with pytest.raises(UserError):
        call("none.jsonl")
    assert snapshot("out") == before


def version_of(out):
    return json.loads(Path(out, "dataset.json").read_text())["version"]


def test_again_and_in_another_order(call):
    rows = clean_rows(120)
    rows[7] = {"messages": chat(f"{text(7)} 4111 1111 1111 1111", answer("login", "Yes."))}
    rows += rows[:3]
    assert call(rows) == 0
    first = snapshot("out")
    assert call(rows) == 0
    assert snapshot("out") == first
    random.Random(4).shuffle(rows)
    assert call(rows, out="other") == 0
    assert version_of("other") == version_of("out")


# Kills a call with SIGKILL before the rename whose number is given: each step, each gate and the
# laying out end in some.
KILLED = """
import os, signal, sys
from tuneline.cli import main

last, count, rename = int(sys.argv[1]), 0, os.replace

def replace(*arguments, **more):
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*arguments, **more)

os.replace = replace
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.long
def test_killed_at_any_point_then_run_again(call, base_dir, tmp_path):
    assert call(clean_rows(60)) == 0
    obsolete = json.loads(Path("out/result.json").read_text())["dataset"]["version"]
    rows = clean_rows(90)
    rename = Mock(wraps=os.replace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", rename)
        assert call(rows, out="fresh") == 0
    last = rename.call_count
    draw = random.Random(3)
    # While the results are laid out, the dataset last, and anywhere before.
    points = [last, last - draw.randint(1, 6), draw.randrange(2, last - 6)]
    arguments = ["data", "prepare", "--input", "rows.jsonl", "--base-model", str(base_dir)]
    arguments += ["--out", "out", "--config", "config.yaml"]
    path = str(Path(__file__).parents[2] / "include")
    for point in points:
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(point), *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        # What lies there is whole and of before, or does not look done.
        if Path("out/dataset.parquet").exists():
            told = json.loads(Path("out/result.json").read_text())["dataset"]["version"]
            assert told == obsolete
    assert call(rows) == 0
    assert len(table("out", "dataset.parquet")) == 90
    assert snapshot("out") == snapshot("fresh")
    assert {p.name for p in Path("out").iterdir()} == {p.name for p in Path("fresh").iterdir()}


@pytest.mark.long
def test_the_sample_in_other_files_and_another_order(call, tmp_path):
    lines = SUPPORT.read_bytes().splitlines()
    (tmp_path / "drawn.yaml").write_text(f"{SETTINGS}max_train_rows: 300\nmax_holdout_rows: 60\n")
    assert call(lines, config="drawn.yaml") == 0
    random.Random(9).shuffle(lines)
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(3):
        content = b"".join(line + b"\n" for line in lines[number::3])
        (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(content))
    assert call("parts", out="other", config="drawn.yaml") == 0
    first, other = (content_of(table(out, "dataset.parquet")) for out in ("out", "other"))
    assert first == other
    assert len(first) > 350
    assert len({version_of(out) for out in ("out", "other")}) == 1


def content_of(rows):
    return {
        json.dumps([row["messages"], row["split"], row["label"], row["weight"]]) for row in rows
    }


@pytest.mark.long
def test_the_sample_passes_production_without_a_waiver(call, tmp_path, policy):
    policy()
    settings = {**IN_PRODUCTION, "data": {**IN_PRODUCTION["data"], "max_tokens": 1024}}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    assert call(str(SUPPORT)) == 0
    result = json.loads(Path("out/result.json").read_text())
    assert {item["item"]: item["verdict"] for item in result["items"]} == dict.fromkeys(
        DATA_ITEMS, "pass"
    )


def test_two_at_once_are_refused(call):
    import fcntl

    Path("out").mkdir()
    with Path("out/.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another call is writing"):
            call(clean_rows(3))


def test_fuzzed_rows_are_all_accounted_for(call):
    lines = fuzzed_lines(2500, seed=11, huge=2)
    assert call(lines) == 1
    kept, gone = check_conservation("out", len(lines))
    assert len(kept) > 300
    assert len(gone) > 800
    for reject in gone:
        line = lines[reject["source_line"] - 1]
        assert reject["raw"] == line.rstrip(b"\r").decode("utf-8", "backslashreplace")
        assert ": " in reject["reason"] or not line.strip()
    reasons = (
        "invalid_utf8 broken_json blank_line duplicate_key unknown_format wrong_type empty_turn "
        "special_token bad_character answer_not_json"
    )
    assert set(reasons.split()) <= {code(reject) for reject in gone}


def test_hostile_rows_take_linear_time(call, tmp_path):
    (tmp_path / "config.yaml").write_text(
        SETTINGS.replace("pii_ner: false\npii_profile: [pci]", "pii_profile: [gdpr]")
    )
    draw = random.Random(5)
    texts = [
        *(filled(lead, piece, 400) for lead, piece in REPEATED),
        *(filled(lead, piece, 16_000) for lead, piece in REPEATED[:3]),
        *hostile_texts(draw, 400, 6),
        "pass:" * 60_000,
    ]
    rows = [*clean_rows(20), *({"messages": chat(said, said[:400])} for said in texts)]
    assert seconds(lambda: call(rows), limit=100) < 100
    check_conservation("out", len(rows))


def test_rows_go_on_unbalanced_if_balancing_breaks(call, monkeypatch):
    def broken(*_):
        raise RuntimeError("no font for the plot")

    monkeypatch.setattr(distribution_balancing, "plot_shares", broken)
    rows = clean_rows(60)
    assert call(rows) == 0
    kept, _ = check_conservation("out", len(rows))
    assert {row["weight"] for row in kept} == {1.0}
    evidence = load_evidence(Path("out/distribution_balancing/evidence.json").read_bytes(), "")
    assert evidence.verdict == "fail"
    assert "no font for the plot" in evidence.summary
    assert "rows go on unbalanced" in evidence.summary
