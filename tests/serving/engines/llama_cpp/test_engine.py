"""llama.cpp: what it can serve, and how its server starts, drains and dies."""

import json
import os
import shutil
import signal
import sys
import threading

import httpx
import pytest
from tests.lab.commands import call
from tests.lab.engines import llama_server
from tests.lab.tiny_models import make_tokenizer
from tests.lab.waiting import wait_for

from tuneline.errors import TunelineError, UserError
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import read_facts

ENGINE = get_engine("llama_cpp")


def test_check(tiny_dir, tmp_path):
    found = ENGINE.check(read_facts(tiny_dir))
    assert found.compatible
    assert found.live
    assert "pre-tokenizer smollm" in found.reason
    other = shutil.copytree(tiny_dir, tmp_path / "other")
    make_tokenizer("unknown", other)
    found = ENGINE.check(read_facts(other))
    assert not found.compatible
    assert "wrong token ids" in found.reason
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["XForCausalLM"]}))
    assert "XForCausalLM" in ENGINE.check(read_facts(other)).reason


STORY = [{"role": "user", "content": "tell a story"}]


def test_a_missing_file_is_the_users_error(tmp_path):
    missing = tmp_path / "none.gguf"
    server = "tuneline.serving.engines.llama_cpp.launch"
    answer = call(sys.executable, "-m", server, "--model", missing, PYTHONPATH="include:.")
    assert answer.returncode == 2
    assert answer.stderr == f"error: {missing} does not exist\n"


def test_start_errors_name_the_cause(tmp_path, tiny_gguf, engine):
    (tmp_path / "text.gguf").write_text("no model at all")
    with pytest.raises(TunelineError, match="expected 'GGUF'"):
        llama_server(tmp_path / "text.gguf").start()
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-5000])
    with pytest.raises(TunelineError, match="corrupted or incomplete"):
        llama_server(tmp_path / "cut.gguf").start()
    port = int(engine.base_url.rsplit(":", 1)[1])
    with pytest.raises(TunelineError, match=f"couldn't bind .*port: {port}"):
        llama_server(tiny_gguf, port=port).start()
    with pytest.raises(TunelineError, match=r"general\.type to be 'adapter'"):
        llama_server(tiny_gguf, loras=[tiny_gguf]).start()
    with pytest.raises(UserError, match="does not exist"):
        llama_server(tmp_path / "none.gguf").start()


def test_it_listens_on_loopback_and_lets_no_page_read(engine):
    assert engine.base_url.startswith("http://127.0.0.1:")
    answer = httpx.get(f"{engine.base_url}/health", headers={"Origin": "http://evil.example"})
    assert answer.headers["access-control-allow-origin"] == "null"
    slots = httpx.get(f"{engine.base_url}/slots").json()
    assert [slot["n_ctx"] for slot in slots] == [512] * 4
    assert engine.memory_bytes() > 10e6
    assert "listening at" in engine.log_file.read_text()


def wait_until_busy(server):
    def busy():
        return any(s["is_processing"] for s in httpx.get(f"{server.base_url}/slots").json())

    wait_for(busy, what="work")


def test_a_term_signal_lets_requests_finish(tiny_gguf):
    server = llama_server(tiny_gguf, ctx=8000, threads=1)
    server.start()
    answers = []

    def ask():
        extra = {"ignore_eos": True}
        answers.append(server.client().chat(STORY, max_tokens=2500, extra=extra))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until_busy(server)
    server.signal(signal.SIGTERM)
    asking.join(60)
    assert answers[0].usage.completion_tokens == 2500
    assert server._process.wait(10) == 0
    server.stop()


def test_it_ends_with_the_process_that_started_it(tiny_gguf):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from tests.lab.engines import llama_server\n"
        "server = llama_server(Path(sys.argv[1]))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    answer = call(sys.executable, "-c", code, tiny_gguf, PYTHONPATH="include:.")
    pid = int(answer.stdout)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="its end")


def test_many_starts(tiny_gguf):
    for parallel in range(1, 9):
        with llama_server(tiny_gguf, parallel=parallel, start_seconds=30) as server:
            assert server.client().chat(STORY, max_tokens=1).usage.completion_tokens == 1
