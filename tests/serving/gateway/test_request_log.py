import json
import stat

import pytest
from tests.lab.waiting import wait_for

from tuneline.errors import UserError
from tuneline.serving.gateway.request_log import load_redaction

SECRET = "my card is 4111-1111-1111-1111"


def mask(text: str) -> str:
    """The redaction function that these tests configure."""
    if "unreadable" in text:
        raise ValueError(text)
    return text.replace("4111-1111-1111-1111", "[CARD]")


def lines(tmp_path) -> list[dict]:
    files = list((tmp_path / "requests").glob("requests-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def ask(gateway, text: str, **fields):
    return gateway.chat(messages=[{"role": "user", "content": text}], **fields)


def test_without_the_section_nothing_is_kept(start, small, tmp_path):
    gateway = start(small)
    ask(gateway, SECRET)
    gateway.stop()
    assert not (tmp_path / "requests").exists()
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"4111" not in file.read_bytes()


def test_counts_only_unless_prompts_are_asked_for(start, small, tmp_path):
    gateway = start(small, request_log={"dir": "requests"})
    response = ask(gateway, SECRET)
    gateway.stop()
    (line,) = lines(tmp_path)
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["turns"], line["prompt_chars"]) == (1, len(SECRET))
    assert (line["served_by"], line["status"]) == ("small", "ok")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (4, 5)
    assert "messages" not in line
    assert "completion" not in line


def test_prompts_are_redacted_in_streams_and_whole_answers(start, small, tmp_path):
    redact = f"{__name__}:mask"
    gateway = start(small, request_log={"dir": "requests", "log_prompts": True, "redact": redact})
    ask(gateway, SECRET)
    ask(gateway, SECRET, stream=True, tools=[{"type": "function", "secret": "4111-1111"}])
    ask(gateway, "unreadable 4111-1111-1111-1111")
    wait_for(lambda: len(lines(tmp_path)) == 3)
    whole, stream, failed = lines(tmp_path)
    for line in (whole, stream):
        assert line["messages"] == [{"role": "user", "content": "my card is [CARD]"}]
        assert line["completion"].startswith("small-0 small-1")
    assert failed["redaction_failed"] is True
    assert "messages" not in failed
    (file,) = (tmp_path / "requests").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "4111" not in file.read_text()


def test_requests_nobody_answered_are_kept_too(start, small, tmp_path):
    small.mode = "error"
    gateway = start(small, request_log={"dir": "requests"})
    ask(gateway, "hello")
    gateway.stop()
    assert [line["served_by"] for line in lines(tmp_path)] == [None]


def test_lines_beyond_the_queue_are_dropped_and_counted(start, small, tmp_path):
    gateway = start(small, request_log={"dir": "requests", "queue_limit": 2})
    assert [ask(gateway, "hello").status_code for _ in range(6)] == [200] * 6
    metrics = gateway.client.get("/metrics").text
    gateway.stop()
    dropped = 6 - len(lines(tmp_path))
    assert dropped > 0
    assert f"tuneline_gateway_request_log_dropped_total {dropped}" in metrics


def test_a_redaction_that_is_not_there_stops_the_start(start, small):
    assert load_redaction("none")("a") == "a"
    for name in ("nowhere:f", "json:nothing", "json", ":f", "json:__name__"):
        with pytest.raises(UserError, match="redact"):
            load_redaction(name)
    with pytest.raises(UserError, match="redact"):
        start(small, request_log={"dir": "r", "log_prompts": True, "redact": "nowhere:f"})
