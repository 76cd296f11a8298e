"""`tuneline engine`: the released weights, checked, become the model of a llama.cpp server."""

import pytest
from tests.lab.releases import release

from tuneline.errors import UserError
from tuneline.serving.engines.llama_cpp.server import build_parser
from tuneline.serving.release import serve
from tuneline.store import CorruptObject, open_store

OPTIONS = {"names": (), "host": "127.0.0.1", "port": 8081, "parallel": 2, "wait": False}


class Replaced(Exception):
    """Stands for the process that takes this one's place."""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))

    def replace(program, argv):
        assert program == argv[0]
        raise Replaced(argv)

    monkeypatch.setattr(serve.os, "execv", replace)
    return open_store((tmp_path / "store").as_uri())


def test_the_released_weights_are_served(store, tmp_path):
    release(store, {"model.gguf": b"w"})
    with pytest.raises(Replaced) as replaced:
        serve.run_engine(store.uri, **OPTIONS)
    (command,) = replaced.value.args
    assert command[1:3] == ["-m", "tuneline.serving.engines.llama_cpp.server"]
    parsed = build_parser().parse_args(command[3:])
    assert parsed.model == tmp_path / "cache" / "released" / "a" / "1" / "model.gguf"
    assert parsed.model.read_bytes() == b"w"
    assert (parsed.alias, parsed.host, parsed.port, parsed.parallel) == ("a", "127.0.0.1", 8081, 2)


def test_other_bytes_than_the_released_ones_are_refused(store):
    release(store, {"model.gguf": b"w"})
    store.put_bytes("models/a/1/model.gguf", b"other")
    with pytest.raises(CorruptObject):
        serve.run_engine(store.uri, **OPTIONS)


def test_nothing_to_serve(store):
    with pytest.raises(UserError, match="holds no released model"):
        serve.run_engine(store.uri, **OPTIONS)
    release(store, {})
    with pytest.raises(UserError, match="states no model"):
        serve.run_engine(store.uri, **OPTIONS)
