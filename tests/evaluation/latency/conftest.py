"""A latency benchmark of a server whose times are known."""

from contextlib import contextmanager

import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.tiny_task import task_rows
from tests.lab.token_server import TokenServer

from tuneline.evaluation import latency_benchmark

# Answers of few tokens: the tests wait for the server, not for its answers.
FEW = {"max_new_tokens": 4, "max_ttft_seconds": 0.25, "max_tpot_seconds": 0.1}


@pytest.fixture
def stub_bench(lab, tmp_path, monkeypatch):
    """Run the item against a `TokenServer`; give its evidence, its run and the server."""

    def execute(behaviour=None, *, identity=None, limits=None, **overrides):
        evaluation = {**FEW, **overrides.pop("evaluation", {})}
        bench = lab(evaluation=evaluation, **overrides)
        bench.leave_dataset(task_rows(SPLITS))
        # No engine loads it: the stub answers.
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        bench.leave_shipped(tmp_path / "model.gguf")
        if identity is not None:
            bench.leave("build_engine", {"identity.json": identity, "engine.json": "{}"})
        with TokenServer(behaviour, **(limits or {})) as server:

            @contextmanager
            def serve(model, deployment, *, threads=None):
                yield server

            monkeypatch.setattr(latency_benchmark, "server_of", serve)
            return bench.execute("latency_benchmark"), bench, server

    return execute
