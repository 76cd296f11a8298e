"""A small server that speaks the part of Weights & Biases' protocol that a run needs."""

import json
from typing import Any

from tests.lab.http_server import Handler, serving

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer:
    """Takes runs, their configuration and their history, on a free port.

    Attributes:
        url: its address.
        runs: what it was told of each run, by id.
        rows: logged rows of each run, in order.
        said: every request's body, to look for what must not be in there.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.said: list[bytes] = []
        self._serving = serving(self._handler())
        self.url = self._serving.__enter__()

    def close(self) -> None:
        """Stop it."""
        self._serving.__exit__(None, None, None)

    def _handler(self) -> type[Handler]:
        server = self

        class Wandb(Handler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.body()
                server.said.append(body)
                answer = json.dumps(server._reply(self.path, body)).encode()
                self.answer(answer, headers={"Content-Type": "application/json"})

            do_GET = do_PUT = do_POST

        return Wandb

    def _reply(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/graphql"):
            asked = json.loads(body)
            given = asked.get("variables") or {}
            return {"data": self._query(asked.get("operationName"), given)}
        if path.endswith("/file_stream"):
            run_id = path.split("/")[-2]
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            for line in history["content"] if history else []:
                self.rows.setdefault(run_id, []).append(json.loads(line))
        return {}

    def _query(self, operation: str | None, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            name = given["name"]
            told = {key: value for key, value in given.items() if value is not None}
            self.runs.setdefault(name, {}).update(told)
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "us"}}
            bucket = {
                "id": f"id-{name}",
                "name": name,
                "displayName": self.runs[name].get("displayName"),
                "config": self.runs[name].get("config"),
                "project": project,
                "historyLineCount": len(self.rows.get(name, [])),
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": name not in self.rows}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]
            ]
            made = {"runID": given["run"], "uploadHeaders": [], "files": files}
            return {"createRunFiles": made}
        if operation == "RunResumeStatus":
            return {"model": self._resumed(given["name"])}
        return {}

    def _resumed(self, run_id: str) -> dict[str, Any] | None:
        rows = self.rows.get(run_id)
        if not rows:
            return None
        last = json.dumps(rows[-1])
        bucket = {
            "name": run_id,
            "summaryMetrics": last,
            "displayName": self.runs[run_id].get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            # The server keeps the last row as a list of JSON lines, itself as JSON.
            "historyTail": json.dumps([last]),
            "eventsTail": "[]",
            "config": self.runs[run_id]["config"],
            "tags": [],
            # Without a start time a run counts as one that never began.
            "wandbConfig": '{"t": 1}',
        }
        return {"id": "p", "name": "tuneline", "entity": {"name": "us"}, "bucket": bucket}
