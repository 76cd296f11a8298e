"""The command line: contract, exit codes, one sentence for each error."""

import errno
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.lab.commands import call
from tests.lab.runs import Lab

from tuneline.catalogue import ITEMS, get_step
from tuneline.cli import main, whole_run
from tuneline.errors import EXIT_FAILED, EXIT_OK, EXIT_RETRY, EXIT_USER
from tuneline.evidence import measure
from tuneline.run import Run
from tuneline.step import store_output
from tuneline.verdicts import status

OK = measure("m", 0, "rows", "<=", 0)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def test_items_json(capsys):
    assert main(["items", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len({row["id"] for row in rows}) == 25
    assert set(rows[0]) == {"id", "phase", "severity", "title"}
    phases = ("data", "training", "evaluation", "deployment", "governance")
    assert Counter(row["phase"] for row in rows) == dict.fromkeys(phases, 5)
    severities = {"critical": 13, "recommended": 10, "optional": 2}
    assert Counter(row["severity"] for row in rows) == severities


def test_checklist_json_and_exit_code(lab, capsys):
    lab.leave("schema_validation", {}, [OK])
    assert main(["checklist", lab.run.uri, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [r["item"] for r in rows][:2] == ["schema_validation", "deduplication"]
    assert set(rows[0]) == {"item", "phase", "severity", "verdict", "summary", "because"}
    assert rows[0]["verdict"] == "pass"


def test_what_needs_a_person_comes_first_and_80_columns_hold_it(lab):
    # With what rich would take for markup.
    summary = f"{'word ' * 60}[bold]between [0.1, 0.2]"
    breach = measure("share", 1.0, "", "<=", 0.5)
    for step, found in (("pii_scrubbing", breach), ("deduplication", OK)):
        ctx = lab.context(step)
        store_output(ctx, ctx.conclude(summary, [found]))
    done = call(sys.executable, "-m", "tuneline.cli", "checklist", lab.run.uri, COLUMNS="200")
    _, counts, *lines = done.stdout.splitlines()
    assert counts == "1 fail, 23 not_run, 1 pass"
    assert {line.split()[1] for line in lines if line[0] != " "} == {item.id for item in ITEMS}
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["fail", "pii_scrubbing", "critical"]
    block = " ".join(" ".join(lines[: lines.index(lines[-2])]).split())
    assert f"{summary} because share is 1, must be <= 0.5" in block
    assert "→ read rows (`tuneline data review-pii`)" in block


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["step", "dedup", "--run", "file:///x/runs/y"], 2, "the items are: schema_validation, "),
        (["step", "deduplication", "--run", "file:///x/runs/y"], 2, "there is no run at"),
        (["checklist", "file:///x/runs/y"], 2, "there is no run at"),
        (["verify", "file:///x"], 2, "is not the URI of a manifest"),
        (["run", "create", "--store", "ftp://x", "--data", "s3://b/x"], 2, "is not a store"),
        (["run", "create", "--store", "file:///x", "--data", "/no"], 2, "does not exist"),
    ],
)
def test_errors_are_one_sentence(argv, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(tmp_path / "message"))
    assert main(argv) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert (tmp_path / "message").read_text().startswith("user_error: ")


def test_an_error_and_the_pods_last_words_hold_no_secret(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(tmp_path / "message"))
    monkeypatch.setenv("WAREHOUSE_TOKEN", "plainwordsecret")
    data = "ftp://dana:orchard77@files.example/plainwordsecret/rows.jsonl"
    assert main(["run", "create", "--store", (tmp_path / "s").as_uri(), "--data", data]) == 2
    for said in (capsys.readouterr().err, (tmp_path / "message").read_text()):
        assert "files.example/***/rows.jsonl" in said
        assert "orchard77" not in said


def test_no_store_is_said(capsys, monkeypatch):
    monkeypatch.delenv("TUNELINE_STORE", raising=False)
    assert main(["run", "create", "--data", "x"]) == 2
    assert "set TUNELINE_STORE" in capsys.readouterr().err


def test_run_create_prints_the_uri_names_the_settings_file_and_keeps_an_absolute_path(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    store = (tmp_path / "store").as_uri()
    create = ["run", "create", "--store", store, "--data", "rows.jsonl", "--run-id", "r1"]
    Path("wrong.yaml").write_text("training: {epochs: many}")
    assert main([*create, "--config", "wrong.yaml"]) == 2
    assert "wrong.yaml: training.epochs: " in capsys.readouterr().err
    Path("other.yaml").write_text("data: {source: /others.jsonl}")
    assert main([*create, "--config", "other.yaml"]) == 2
    disagree = f"--data says '{tmp_path}/rows.jsonl' for data.source, other.yaml says '/others"
    assert disagree in capsys.readouterr().err
    assert not Path("store").exists()
    Path("right.yaml").write_text("training: {epochs: 1}")
    assert main([*create, "--config", "right.yaml"]) == 0
    uri = capsys.readouterr().out.strip()
    assert uri == f"{store}/runs/r1"
    run = Run.open(uri)
    assert run.config.data.source == str(tmp_path / "rows.jsonl")
    assert run.config.training.epochs == 1


def test_a_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch):
    """Whatever wrote: the gate's library in the temporary folder, say."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/small/file")

    monkeypatch.setattr("tuneline.data.show.command.show", full)
    command = ["data", "show", "x"]
    assert main(command) == 75
    error = capsys.readouterr().err
    assert error.startswith("tuneline: can't write /small/file: No space left on device; free")
    assert error.count("\n") == 1

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tuneline.data.show.command.show", broken)
    with pytest.raises(OSError, match="Input/output error"):
        main(command)


def test_help_loads_nothing_heavy():
    code = (
        "import sys, tuneline.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pyarrow', 'great_expectations'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    include = Path(__file__).resolve().parents[1] / "include"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONPATH": str(include)}
    )
    assert done.returncode == 0, done


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m tuneline.cli items | head -1", shell=True, capture_output=True
    )
    assert b"Traceback" not in done.stderr


# `tuneline run all`: which steps a call carries out, and what ends it.
CRITICAL, OPTIONAL, LAST = "license_audit", "cost_tracking", "promote"


class Steps:
    """Three steps that leave what a test wants, in place of their processes."""

    def __init__(self, lab):
        self._lab = lab
        self.codes, self.holds, self.carried_out = {}, {}, []

    def __call__(self, run, *command):
        step = command[-1]
        self.carried_out.append(step)
        if not (code := self.codes.get(step, EXIT_OK)):
            rows = measure("rows", 0, "rows", "<=", 0 if self.holds.get(step, True) else -1)
            self._lab.leave(step, {}, [rows])
        return code

    def call(self):
        """Call the command; its exit code and the steps that it carried out."""
        self.carried_out.clear()
        return whole_run.run_all(self._lab.run), self.carried_out


@pytest.fixture
def steps(lab, monkeypatch):
    made = Steps(lab)
    monkeypatch.setattr(whole_run, "RUN_ORDER", list(map(get_step, (CRITICAL, OPTIONAL, LAST))))
    monkeypatch.setattr(whole_run, "_carry_out", made)
    return made


def test_a_second_call_goes_on_after_what_is_done(steps):
    steps.codes[LAST] = EXIT_FAILED
    assert steps.call() == (EXIT_FAILED, [CRITICAL, OPTIONAL, LAST])
    steps.codes.clear()
    assert steps.call() == (EXIT_OK, [LAST])


def test_a_run_without_airflow_answers_all_shards_before_they_are_scored(tmp_path, monkeypatch):
    carried_out = []
    monkeypatch.setattr(whole_run, "RUN_ORDER", [get_step("holdout_performance")])
    monkeypatch.setattr(whole_run, "_carry_out", lambda _, *words: carried_out.append(words) or 1)
    for shards in (1, 2):
        lab = Lab(tmp_path, {"evaluation": {"shards": shards}}, f"r{shards}")
        assert whole_run.run_all(lab.run) == EXIT_FAILED
    step = ("tuneline", "step", "holdout_performance")
    assert carried_out == [step, ("tuneline", "run", "answer")]


def test_a_second_call_measures_again_what_stopped_the_first(steps):
    steps.holds[CRITICAL] = False
    assert steps.call() == (EXIT_FAILED, [CRITICAL])
    assert steps.call() == (EXIT_FAILED, [CRITICAL])
    steps.holds.clear()
    assert steps.call() == (EXIT_OK, [CRITICAL, OPTIONAL, LAST])


@pytest.mark.parametrize("code", [EXIT_RETRY, EXIT_FAILED, -9])
def test_a_run_goes_on_without_an_optional_item_that_breaks(steps, lab, code):
    steps.codes[OPTIONAL] = code
    assert steps.call() == (EXIT_OK, [CRITICAL, OPTIONAL, LAST])
    assert f"exit code {code}" in status(lab.run, OPTIONAL).summary
    # It is tried again by the next call.
    steps.codes.clear()
    assert steps.call() == (EXIT_OK, [OPTIONAL, LAST])
    assert status(lab.run, OPTIONAL).verdict == "pass"


@pytest.mark.parametrize(
    ("step", "code", "ends"),
    [
        (CRITICAL, EXIT_RETRY, EXIT_RETRY),
        (CRITICAL, -9, EXIT_FAILED),
        (OPTIONAL, EXIT_USER, EXIT_USER),
    ],
)
def test_the_exit_code_of_a_step_that_ends_the_run(steps, step, code, ends):
    steps.codes[step] = code
    assert steps.call()[0] == ends


def test_a_run_that_needs_people_is_refused_and_leaves_nothing(tmp_path, capsys):
    rows, settings, store = (tmp_path / name for name in ("rows.jsonl", "settings.yaml", "store"))
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    settings.write_text("approval: true\n")
    words = ["run", "all", "--store", store.as_uri(), "--data", rows, "--config", settings]
    assert main(list(map(str, words))) == 2
    assert "needs answers of people (approval)" in capsys.readouterr().err
    assert not store.exists()
