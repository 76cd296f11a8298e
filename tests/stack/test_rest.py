"""A busy Airflow is asked again; one that refuses is not."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tuneline.errors import TunelineError
from tuneline.serving.server_process import free_port
from tuneline.stack import airflow, rest
from tuneline.stack.dag_run import DagRun


class Server:
    """Answers each request with the next status of a list, the last one for ever."""

    def __init__(self):
        self.statuses, self.asked = [200], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                self.rfile.read(int(self.headers.get("content-length") or 0))
                server.asked.append(f"{self.command} {self.path}")
                statuses = server.statuses
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                if self.path == "/auth/token":
                    status = 201
                if status == 0:
                    # The connection breaks before an answer.
                    return self.connection.close()
                body = json.dumps({"state": "running", "access_token": "t"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                return self.wfile.write(body)

            do_GET = do_POST = do_PATCH = _answer

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def client(server, layout, monkeypatch):
    monkeypatch.setattr(rest, "_PAUSE_SECONDS", 0)
    airflow.prepare(layout)
    made = rest.Airflow(replace(layout, ui_port=server.http.server_port))
    yield made
    made.close()


def test_a_locked_database_and_a_broken_connection_are_waited_out(server, client):
    server.statuses = [500, 0, 503, 200]
    assert DagRun(client, "one").state() == "running"
    assert len(server.asked) == 4


def test_an_airflow_that_stays_broken_is_an_error(server, client):
    server.statuses = [500]
    with pytest.raises(TunelineError, match=r"Airflow: GET /dags/.*/dagRuns/one: 500"):
        DagRun(client, "one").state()
    assert len(server.asked) == rest._TRIES


def test_a_refusal_is_not_asked_again(server, client):
    server.statuses = [422]
    with pytest.raises(TunelineError, match="422"):
        DagRun(client, "one").trigger({})
    assert len(server.asked) == 1


def test_a_run_that_a_lost_answer_started_is_not_an_error(server, client):
    server.statuses = [0, 409]
    DagRun(client, "one").trigger({})
    assert len(server.asked) == 2


def test_it_logs_in_when_its_token_has_expired(server, client):
    server.statuses = [401, 201, 200]
    assert DagRun(client, "one").state() == "running"
    assert server.asked[1] == "POST /auth/token"


def test_nothing_at_the_port_is_an_error_that_names_the_log(layout, monkeypatch):
    monkeypatch.setattr(rest, "_PAUSE_SECONDS", 0)
    client = rest.Airflow(replace(layout, ui_port=free_port()))
    with pytest.raises(TunelineError, match=r"does not answer at http.*api-server"):
        client.call("GET", "/dags")
    client.close()
