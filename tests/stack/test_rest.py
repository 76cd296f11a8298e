"""A busy Airflow is asked again; one that refuses is not."""

from dataclasses import replace

import pytest
from tests.lab.http_server import Handler, serving

from tuneline.errors import TunelineError
from tuneline.serving.processes import free_port
from tuneline.stack import airflow, rest
from tuneline.stack.dag_run import DagRun


class Server:
    """Answers each request with the next status of a list, the last one for ever; 0 breaks off."""

    def __init__(self):
        self.statuses, self.asked, self.port = [200], [], 0

    def next_status(self, request):
        self.asked.append(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return 201 if request == "POST /auth/token" else status


@pytest.fixture
def server():
    made = Server()

    class Api(Handler):
        def _answer(self):
            self.body()
            status = made.next_status(f"{self.command} {self.path}")
            if status == 0:
                self.connection.close()
            else:
                self.answer(b'{"state": "running", "access_token": "t"}', status)

        do_GET = do_POST = do_PATCH = _answer

    with serving(Api) as url:
        made.port = int(url.rpartition(":")[2])
        yield made


@pytest.fixture
def client(server, layout, monkeypatch):
    monkeypatch.setattr(rest, "_PAUSE_SECONDS", 0)
    airflow.prepare(layout)
    made = rest.Airflow(replace(layout, ui_port=server.port))
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
