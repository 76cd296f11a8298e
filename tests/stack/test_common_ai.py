"""Airflow's own operators for language models, against the gateway.

They need `requirements/common-ai.txt`, which fits beside the pins of the Airflow environment.
"""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from tests.lab.ml_environment import ML_PYTHON, ROOT

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        importlib.util.find_spec("pydantic_ai") is None,
        reason="pip install -r requirements/common-ai.txt",
    ),
]

TASKS = """
import json, sys
from pydantic import BaseModel
from airflow.providers.common.ai.hooks.pydantic_ai import PydanticAIHook
from airflow.providers.common.ai.operators.llm import LLMOperator

hook = PydanticAIHook.get_hook("gateway")
agent = hook.create_agent(instructions="Answer.")

@agent.tool_plain
def weather(city: str) -> str:
    return "rain in " + city

told = agent.run_sync("How is the weather?")
hook = PydanticAIHook.get_hook("gateway")
asked = LLMOperator(task_id="ask", prompt="a b c", llm_conn_id="gateway")
print(json.dumps({"tool": told.output, "operator": asked.execute({})}))
"""


@pytest.fixture
def gateway(tmp_path):
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'include'}:{ROOT}"}
    command = [str(ML_PYTHON), "-m", "tests.lab.served_gateway", str(tmp_path)]
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield json.loads(process.stdout.readline())
    process.stdin.close()
    process.wait(20)


def airflow(tmp_path, gateway, code: str, key: str) -> subprocess.CompletedProcess:
    connection = {
        "conn_type": "pydanticai",
        "host": f"{gateway['url']}/v1",
        "password": key,
        "extra": {"model": "openai-chat:support"},
    }
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW_CONN_GATEWAY": json.dumps(connection),
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )


def test_the_connection_serves_hook_and_operator(tmp_path, gateway):
    done = airflow(tmp_path, gateway, TASKS, gateway["key"])
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    # The model asked for the tool, was told what it returned, and answered.
    assert told["tool"] == "It rains."
    assert told["operator"] == "".join(f"small-{i} " for i in range(5))
    with closing(sqlite3.connect(tmp_path / "usage.db")) as db:
        rows = db.execute("SELECT key, completion_tokens FROM usage ORDER BY time").fetchall()
    assert rows == [("airflow", 4), ("airflow", 3), ("airflow", 5)]


def test_a_wrong_key_fails_the_task_and_says_so(tmp_path, gateway):
    done = airflow(tmp_path, gateway, TASKS, "tl-wrong")
    assert done.returncode != 0
    assert "A valid API key is needed" in done.stderr
