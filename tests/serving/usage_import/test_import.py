"""Rows of LiteLLM and spans of OpenTelemetry, as files and databases have them."""

import csv
import json
import sqlite3
from contextlib import closing
from datetime import date

import pytest
from tests.lab.postgres import PostgresServer, why_not

from tuneline.artifacts.request_log import days, read_day
from tuneline.cli import main
from tuneline.serving.gateway.costs import costs
from tuneline.serving.gateway.usage import usage_by_key
from tuneline.store import open_store

MAIL = "ann@example.com"
# As LiteLLM stores a key: the SHA-256 of it.
HASHED = "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"


def spend_row(number=1, **fields):
    """A row of LiteLLM_SpendLogs with prompts stored."""
    return {
        "request_id": f"chatcmpl-{number}",
        "call_type": "acompletion",
        "api_key": HASHED,
        "spend": 0.002,
        "total_tokens": 30,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "startTime": "2026-11-25T10:00:00.000Z",
        "endTime": "2026-11-25T10:00:01.500Z",
        "completionStartTime": "2026-11-25T10:00:00.400Z",
        "model": "openai/gpt-x",
        "model_group": "support",
        "custom_llm_provider": "openai",
        "user": "default_user_id",
        "end_user": MAIL,
        "metadata": {"user_api_key_alias": "team-a", "status": "success"},
        "messages": [{"role": "user", "content": f"I am {MAIL}, where is my parcel?"}],
        "response": {
            "choices": [
                {
                    "message": {"role": "assistant", "content": f"On its way to {MAIL}."},
                    "finish_reason": "stop",
                }
            ]
        },
        **fields,
    }


def attribute(name, value):
    if isinstance(value, list):
        return {
            "key": name,
            "value": {"arrayValue": {"values": [{"stringValue": entry} for entry in value]}},
        }
    kind = "intValue" if isinstance(value, int) else "stringValue"
    return {"key": name, "value": {kind: str(value)}}


PROMPT = [{"role": "user", "parts": [{"type": "text", "content": f"I am {MAIL}, hello"}]}]
ANSWER = [{"role": "assistant", "parts": [{"type": "text", "content": "Good day"}]}]
CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "support",
    "gen_ai.response.model": "gpt-x-0101",
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.output_tokens": 3,
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.input.messages": json.dumps(PROMPT),
    "gen_ai.output.messages": json.dumps(ANSWER),
    "user.id": "u7",
}


def otel_span(number=1, attributes=CALL, **fields):
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": f"{number:016x}",
        "name": "chat support",
        "startTimeUnixNano": "1795600800000000000",
        "endTimeUnixNano": "1795600801250000000",
        "attributes": [attribute(name, value) for name, value in attributes.items()],
        **fields,
    }


def batch(*spans):
    resource = {"attributes": [attribute("service.name", "shop")]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def write_lines(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


class Import:
    """Runs the command and reads what it left."""

    def __init__(self, folder, capsys):
        self.ledger = folder / "usage.db"
        self.store = (folder / "store").as_uri()
        self._capsys = capsys

    def __call__(self, source, *files, store=True, expect=0, extra=()):
        command = ["usage", "import", "--from", source, *map(str, files), *extra]
        command += ["--ledger", str(self.ledger), "--json"]
        code = main([*command, "--store", self.store] if store else command)
        said = self._capsys.readouterr()
        assert code == expect, said.err
        report = json.loads(said.out) if said.out else {}
        if report:
            rejected = len(report["rejected"])
            assert report["rows"] == report["taken"] + report["known"] + rejected
        return report, said.err

    def rows(self):
        with closing(sqlite3.connect(self.ledger)) as db:
            db.row_factory = sqlite3.Row
            return [dict(r) for r in db.execute("SELECT * FROM usage ORDER BY request_id")]

    def logged(self, model="support", day=date(2026, 11, 25)):
        return read_day(open_store(self.store), model, day).to_pylist()


@pytest.fixture
def importing(tmp_path, capsys):
    return Import(tmp_path, capsys)


def test_spend_logs_become_usage_and_scrubbed_prompts(importing, tmp_path):
    report, _ = importing("litellm", write_lines(tmp_path / "s.jsonl", spend_row()))
    assert (report["taken"], report["logged"]) == (1, 1)
    (row,) = importing.rows()
    assert (row["request_id"], row["kind"], row["key"]) == (
        "litellm:chatcmpl-1",
        "imported",
        "team-a",
    )
    assert (row["model"], row["model_served"], row["upstream"]) == (
        "support",
        "openai/gpt-x",
        "openai",
    )
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost"]) == (10, 20, 0.002)
    assert (row["latency_ms"], row["ttft_ms"], row["status"]) == (1500.0, 400.0, "ok")
    (logged,) = importing.logged()
    assert logged["messages"][0]["content"] == "I am [EMAIL_ADDRESS], where is my parcel?"
    assert logged["answer"] == "On its way to [EMAIL_ADDRESS]."
    assert logged["redactions"] == [{"type": "EMAIL_ADDRESS", "count": 2}]
    # Nowhere on the disk but in the file that was imported.
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "s.jsonl"]
    assert files
    assert not any(MAIL.encode() in path.read_bytes() for path in files)


def test_a_second_import_counts_nothing_twice(importing, tmp_path):
    first = write_lines(tmp_path / "a.jsonl", spend_row(1), spend_row(2))
    importing("litellm", first)
    longer = write_lines(tmp_path / "b.jsonl", spend_row(1), spend_row(2), spend_row(3))
    report, _ = importing("litellm", first, longer)
    assert (report["rows"], report["taken"], report["known"]) == (5, 1, 4)
    assert len(importing.rows()) == 3
    assert len(importing.logged()) == 3
    parts = [k for k in open_store(importing.store).keys("logs") if k.endswith(".parquet")]
    assert len(parts) == 2
    (group,) = costs(importing.ledger, "key")
    assert (group.requests, group.cost) == (3, pytest.approx(0.006))
    # Budgets of this gateway's keys are not spent by it.
    assert usage_by_key(importing.ledger) == []


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sqlite"])
def test_every_form_gives_the_same_rows(importing, tmp_path, form):
    rows = [spend_row(1), spend_row(2, messages={}, response={}, api_key="sk-1234", metadata={})]
    path = tmp_path / f"spend.{form}"
    flat = [
        {n: json.dumps(v) if isinstance(v, dict | list) else v for n, v in r.items()} for r in rows
    ]
    if form == "json":
        path.write_text(json.dumps(rows, indent=2))
    elif form == "jsonl":
        write_lines(path, *rows)
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, flat[0].keys())
            writer.writeheader()
            writer.writerows(flat)
    else:
        names = ", ".join(f'"{name}"' for name in flat[0])
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f'CREATE TABLE "LiteLLM_SpendLogs" ({names})')
            marks = ", ".join("?" * len(flat[0]))
            for row in flat:
                db.execute(f'INSERT INTO "LiteLLM_SpendLogs" VALUES ({marks})', [*row.values()])
    report, _ = importing("litellm", f"sqlite:///{path}" if form == "sqlite" else path)
    assert (report["taken"], report["logged"]) == (2, 1)
    first, second = importing.rows()
    assert (first["key"], first["cost"], first["latency_ms"]) == ("team-a", 0.002, 1500.0)
    # A key that was not hashed is not stored.
    assert second["key"].startswith("litellm-")
    assert "1234" not in second["key"]
    assert importing.logged()[0]["messages"][0]["content"].startswith("I am [EMAIL_ADDRESS]")


def test_spend_logs_from_a_postgresql_server(importing):
    if reason := why_not():
        pytest.skip(reason)
    server = PostgresServer()
    try:
        url = server.create("litellm")
        server.run_sql(
            """CREATE TABLE "LiteLLM_SpendLogs" (request_id text PRIMARY KEY, api_key text,
            spend double precision, prompt_tokens int, completion_tokens int,
            "startTime" timestamp(3), "endTime" timestamp(3), "completionStartTime" timestamp(3),
            model text, model_group text, custom_llm_provider text, "user" text, end_user text,
            metadata jsonb, messages jsonb, response jsonb, status text)""",
            "litellm",
        )
        server.run_sql(
            f"""INSERT INTO "LiteLLM_SpendLogs" VALUES ('c1', '{HASHED}', 0.5, 10, 20,
            '2026-11-25 10:00:00', '2026-11-25 10:00:02', NULL, 'm', '', 'openai', '', 'u',
            '{{}}', '[{{"role": "user", "content": "{MAIL} asks"}}]', '{{}}', 'success'),
            ('c2', '{HASHED}', 0.5, 10, 20, '2026-11-25 10:00:03', '2026-11-25 10:00:02', NULL,
            'm', '', 'openai', '', 'u', '{{}}', '{{}}', '{{}}', 'failure')""",
            "litellm",
        )
        report, _ = importing("litellm", url, expect=1)
    finally:
        server.remove()
    (row,) = importing.rows()
    assert (row["cost"], row["latency_ms"], row["key"]) == (0.5, 2000.0, f"litellm-{HASHED[:12]}")
    # Its times have no zone; they are UTC.
    assert row["time"] == 1795600800.0
    (rejected,) = report["rejected"]
    assert rejected["place"].endswith(":2")
    assert "the end is before the beginning" in rejected["reason"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"request_id": ""}, "request_id is missing"),
        ({"request_id": "a\nb"}, "request_id has characters"),
        ({"prompt_tokens": -1}, "prompt_tokens must be a whole number"),
        ({"completion_tokens": "many"}, "completion_tokens must be a whole number"),
        ({"completion_tokens": None}, "completion_tokens must be a whole number"),
        ({"spend": "NaN"}, "spend must be a number"),
        ({"spend": -0.5}, "spend must be a number"),
        ({"startTime": "soon"}, "startTime must be a time"),
        ({"endTime": "2026-11-25T09:00:00Z"}, "the end is before the beginning"),
        ({"model": "", "model_group": ""}, "no model is named"),
    ],
)
def test_a_wrong_row_is_rejected_with_its_line(importing, tmp_path, fields, words):
    path = write_lines(tmp_path / "s.jsonl", spend_row(1), spend_row(2, **fields), spend_row(3))
    report, _ = importing("litellm", path, expect=1)
    (rejected,) = report["rejected"]
    assert rejected["place"] == f"{path}:2"
    assert words in rejected["reason"]
    assert len(importing.rows()) == 2


def test_broken_lines_and_where_they_are(importing, tmp_path, capsys):
    path = tmp_path / "s.jsonl"
    good = json.dumps(spend_row(1)).encode()
    path.write_bytes(good + b"\n\n{\n[1]\n\xff\xfe\n" + b'{"request_id": "\xff"}\n')
    report, _ = importing("litellm", path, expect=1)
    places = [r["place"].rsplit(":", 1)[1] for r in report["rejected"]]
    assert places == ["3", "4", "5", "6"]
    reasons = [r["reason"] for r in report["rejected"]]
    assert reasons[0] == "not JSON"
    assert "object of LiteLLM's columns" in reasons[1]
    assert reasons[3] == "not valid UTF-8"
    assert main(
        ["usage", "import", "--from", "litellm", str(path), "--ledger", str(importing.ledger)]
    )
    said = capsys.readouterr()
    assert f"{path}:3: not JSON" in said.err
    assert "5 rows: 0 taken, 1 known before, 4 rejected" in said.out


def test_lines_of_a_list_and_of_csv_with_breaks_in_cells(importing, tmp_path):
    listed = tmp_path / "s.json"
    listed.write_text(json.dumps([spend_row(1), spend_row(2, spend=-1)], indent=1))
    report, _ = importing("litellm", listed, expect=1)
    line = int(report["rejected"][0]["place"].rsplit(":", 1)[1])
    assert '"chatcmpl-2"' in listed.read_text().splitlines()[line]
    table = tmp_path / "s.csv"
    table.write_text(
        "request_id,prompt_tokens,completion_tokens,startTime,endTime,model,messages\n"
        'c1,1,1,2026-11-25T10:00:00,2026-11-25T10:00:00,m,"two\nlines"\n'
        "c2,x,1,2026-11-25T10:00:00,2026-11-25T10:00:00,m,\n"
        "c3,1\n"
    )
    report, _ = importing("litellm", table, expect=1)
    assert [r["place"] for r in report["rejected"]] == [f"{table}:4", f"{table}:5"]
    assert "2 cells where the first line names 7" in report["rejected"][1]["reason"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.json", '[{"request_id": ', "s.json:1: the JSON list is broken"),
        ("s.csv", "", "no line of column names"),
        ("s.csv", 'request_id\n"open\n', "s.csv:2: the CSV file is broken"),
    ],
)
def test_a_file_that_is_broken_as_a_whole(importing, tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    _, said = importing("litellm", path, expect=2)
    assert words in said


def test_a_missing_file_stops_before_anything_is_taken(importing, tmp_path):
    path = write_lines(tmp_path / "s.jsonl", spend_row())
    _, said = importing("litellm", path, tmp_path / "none.jsonl", expect=2)
    assert "none.jsonl: no such file; nothing was imported" in said
    assert not importing.ledger.exists()


def test_a_failed_call_has_its_status(importing, tmp_path):
    path = write_lines(tmp_path / "s.jsonl", spend_row(status="failure", response={}, spend=0))
    importing("litellm", path)
    (row,) = importing.rows()
    assert (row["status"], row["served"]) == ("failed", 0)
    (logged,) = importing.logged()
    assert (logged["status"], logged["answer"]) == ("failed", None)


def test_spans_become_usage_and_scrubbed_prompts(importing, tmp_path):
    agent = otel_span(9, {**CALL, "gen_ai.operation.name": "invoke_agent"})
    plain = otel_span(8, {"http.request.method": "GET"})
    path = write_lines(tmp_path / "t.jsonl", batch(otel_span(1), agent, plain), batch(otel_span(2)))
    report, _ = importing("otel", path, extra=["--price", "1000,2000", "--users", "plain"])
    assert (report["rows"], report["taken"], report["passed_over"]) == (2, 2, 2)
    first, _ = importing.rows()
    assert first["request_id"] == "otel:5b8efff798038103d269b633813fc60c/0000000000000001"
    assert (first["key"], first["model"], first["model_served"]) == (
        "shop",
        "support",
        "gpt-x-0101",
    )
    assert (first["prompt_tokens"], first["completion_tokens"]) == (7, 3)
    assert (first["cost"], first["latency_ms"]) == (pytest.approx(0.013), 1250.0)
    assert (first["user_id"], first["upstream"]) == ("u7", "openai")
    (logged, _) = importing.logged()
    assert logged["messages"] == [{"role": "user", "content": "I am [EMAIL_ADDRESS], hello"}]
    assert (logged["answer"], logged["finish_reason"]) == ("Good day", "stop")
    report, _ = importing("otel", path)
    assert (report["taken"], report["known"]) == (0, 2)
    assert days(open_store(importing.store), "support") == [date(2026, 11, 25)]


def test_older_names_and_other_places_of_prompts(importing, tmp_path):
    older = {
        "gen_ai.system": "openai",
        "gen_ai.request.model": "support",
        "gen_ai.usage.prompt_tokens": 4,
        "gen_ai.usage.completion_tokens": 2,
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": f"hello from {MAIL}",
        "gen_ai.completion.0.content": "hi",
    }
    bare = {n: v for n, v in CALL.items() if not n.endswith("messages")}
    texts = [attribute(n, CALL[n]) for n in CALL if n.endswith("messages")]
    event = {"name": "gen_ai.client.inference.operation.details", "attributes": texts}
    path = write_lines(
        tmp_path / "t.jsonl", batch(otel_span(1, older), otel_span(2, bare, events=[event]))
    )
    report, _ = importing("otel", path)
    assert (report["taken"], report["logged"]) == (2, 2)
    assert [row["prompt_tokens"] for row in importing.rows()] == [4, 7]
    texts = sorted(row["messages"][0]["content"] for row in importing.logged())
    assert texts == ["I am [EMAIL_ADDRESS], hello", "hello from [EMAIL_ADDRESS]"]


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (otel_span(2, traceId="xyz"), "traceId must be 32 hex digits"),
        (otel_span(2, spanId=None), "spanId must be 16 hex digits"),
        (otel_span(2, startTimeUnixNano="soon"), "startTimeUnixNano must be a time"),
        (otel_span(2, endTimeUnixNano="1"), "the end is before the beginning"),
        (otel_span(2, {"gen_ai.operation.name": "chat"}), "no model is named"),
        (
            otel_span(2, {n: v for n, v in CALL.items() if "usage" not in n}),
            "gen_ai.usage.input_tokens is missing",
        ),
        (otel_span(2, {**CALL, "gen_ai.usage.output_tokens": "few"}), "must be a whole number"),
    ],
)
def test_a_wrong_span_is_rejected_with_its_line(importing, tmp_path, span, words):
    path = write_lines(tmp_path / "t.jsonl", batch(otel_span(1)), batch(otel_span(3), span))
    report, _ = importing("otel", path, expect=1)
    (rejected,) = report["rejected"]
    assert rejected["place"] == f"{path}:2: span 2"
    assert words in rejected["reason"]
    assert len(importing.rows()) == 2


def test_a_failed_span_needs_no_usage(importing, tmp_path):
    attributes = {n: v for n, v in CALL.items() if "usage" not in n}
    failed = otel_span(1, attributes, status={"code": 2})
    importing("otel", write_lines(tmp_path / "t.jsonl", batch(failed)))
    (row,) = importing.rows()
    assert (row["status"], row["prompt_tokens"], row["served"]) == ("failed", 0, 0)


def test_lines_that_are_no_batch_of_spans(importing, tmp_path):
    path = write_lines(
        tmp_path / "t.jsonl", "nonsense\n", {"resourceMetrics": []}, batch(otel_span())
    )
    report, _ = importing("otel", path, expect=1)
    assert [r["place"] for r in report["rejected"]] == [f"{path}:1", f"{path}:2"]
    assert (report["rows"], report["taken"]) == (3, 1)


def test_texts_that_can_not_be_scrubbed_are_not_written(importing, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError(MAIL)

    monkeypatch.setattr("tuneline.data.pii.replace.scrubber.PlaceholderScrubber.__call__", fail)
    importing("litellm", write_lines(tmp_path / "s.jsonl", spend_row()))
    (logged,) = importing.logged()
    assert (logged["messages"], logged["answer"]) == (None, None)


def test_no_prompt_is_kept_without_a_store(importing, tmp_path):
    report, _ = importing("litellm", write_lines(tmp_path / "s.jsonl", spend_row()), store=False)
    assert (report["taken"], report["logged"]) == (1, 0)
