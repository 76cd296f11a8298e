"""`tuneline engine`: the released weights, checked, become the model of a llama.cpp server."""

import pytest
from tests.lab.releases import HOSTILE, forge, hostile, release
from tests.lab.signatures import FORGERIES, Writer, key_pair

from tuneline.artifacts.release_log import Withdrawn
from tuneline.cli import main
from tuneline.errors import UserError
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.serving.engines.llama_cpp.launch import build_parser
from tuneline.serving.following import release as serve
from tuneline.store import open_store

OPTIONS = {"names": (), "host": "127.0.0.1", "port": 8081, "parallel": 2, "wait": False}


class Replaced(Exception):
    """Stands for the process that takes this one's place."""


@pytest.fixture
def replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))

    def replace(program, argv):
        assert program == argv[0]
        raise Replaced(argv)

    monkeypatch.setattr(serve.os, "execv", replace)


@pytest.fixture
def store(tmp_path, replaced):
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def anywhere(any_store, replaced):
    return any_store


def test_the_released_weights_are_served_and_other_bytes_are_fetched_again(store, tmp_path):
    """Hashed at each start: whoever may write to the cache is no release."""
    release(store, {"model.gguf": b"w"})
    for _ in range(2):
        with pytest.raises(Replaced) as replaced:
            serve.run_engine(store.uri, **OPTIONS)
        (command,) = replaced.value.args
        assert command[1:3] == ["-m", "tuneline.serving.engines.llama_cpp.launch"]
        parsed = build_parser().parse_args(command[3:])
        assert parsed.model == tmp_path / "cache" / "released" / "a" / "1" / "model.gguf"
        assert parsed.model.read_bytes() == b"w"
        served = (parsed.alias, parsed.host, parsed.port, parsed.parallel)
        assert served == ("a", "127.0.0.1", 8081, 2)
        assert [*parsed.model.parent.iterdir()] == [parsed.model]
        parsed.model.write_bytes(b"evil")
        # An engine may load all that lies there.
        parsed.model.with_name("more.safetensors").write_bytes(b"evil")


def test_nothing_to_serve(store):
    with pytest.raises(UserError, match="holds no released model"):
        serve.run_engine(store.uri, **OPTIONS)
    release(store, {})
    with pytest.raises(UserError, match="states no model"):
        serve.run_engine(store.uri, **OPTIONS)


def engine(store, capsys, *options):
    """The exit code of the command, 0 if an engine took the place of it, and its last words."""
    try:
        code = main(["engine", "--store", store.uri, *options])
    except Replaced:
        code = 0
    return code, capsys.readouterr().err


def test_another_manifest_than_the_released_one_is_refused(anywhere, capsys):
    """By the pointer, by the log of a version that is named, or by the hash that is asked for."""
    release(anywhere, {"model.gguf": b"w"})
    assert engine(anywhere, capsys)[0] == 0
    sha256 = anywhere.find("models/a/1/manifest.json").sha256
    assert engine(anywhere, capsys, "--release", f"a@1@{sha256}")[0] == 0
    code, said = engine(anywhere, capsys, "--release", f"a@1@{'0' * 64}")
    assert (code, "it was released with 000" in said) == (1, True)
    pointer = anywhere.get_bytes("models/a/production.json")
    anywhere.put_bytes("models/a/production.json", pointer.replace(sha256.encode(), b"0" * 64))
    assert engine(anywhere, capsys)[0] == 1
    anywhere.put_bytes("models/a/production.json", pointer)
    raw = anywhere.get_bytes("models/a/1/manifest.json")
    anywhere.put_bytes("models/a/1/manifest.json", raw + b" ")
    for options in ([], ["--release", "a@1"]):
        code, said = engine(anywhere, capsys, *options)
        assert (code, f"it was released with {sha256}" in said) == (1, True)


def test_a_withdrawn_version_is_not_served(anywhere, capsys):
    release(anywhere, {"model.gguf": b"w"})
    event = Withdrawn(by="alice", reason="it answers with names of customers")
    record(read_pointer(anywhere, "a"), "1", "unused", [event])
    for options in ([], ["--release", "a@1"]):
        code, said = engine(anywhere, capsys, *options)
        assert (code, "a 1 was withdrawn: it answers with names" in said) == (2, True)


def test_names_of_a_manifest_lead_nowhere(anywhere, capsys, tmp_path):
    """Nothing is written, not even into the cache."""
    before = [p for p in tmp_path.rglob("*") if "store" not in p.parts]
    for number, kind in enumerate(HOSTILE):
        version = f"v{number}"
        document = hostile(kind, "../../../../../../outside", version=version)
        forge(anywhere, document, version=version)
        for options in ([], ["--release", f"a@{version}"]):
            code, said = engine(anywhere, capsys, *options)
            assert (code, f"{version}/manifest.json" in said) == (1, True), kind
    assert [p for p in tmp_path.rglob("*") if "store" not in p.parts] == before


def test_a_host_that_trusts_a_key_serves_what_it_has_signed_alone(anywhere, capsys, tmp_path):
    pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
    private, public = key_pair(tmp_path, "ours")
    _, other = key_pair(tmp_path, "others")
    writer = Writer(anywhere, private, tmp_path / "signed", "a", "1")
    writer.promotes("1", {"model.gguf": b"GGUF good"})
    assert engine(anywhere, capsys, "--public-key", str(public))[0] == 0
    code, said = engine(anywhere, capsys, "--public-key", str(other))
    assert (code, "is by another key than" in said) == (2, True)
    for number, attack in enumerate(FORGERIES):
        named = attack(writer, f"v{number}")
        for options in ([], ["--release", f"a@v{number}"]):
            code, said = engine(anywhere, capsys, "--public-key", str(public), *options)
            assert code, attack
            assert named in said, (attack, said)
    # An edited log: nobody has released the pointer's version.
    writer.promotes("2", {"model.gguf": b"GGUF better"})
    anywhere.delete_prefix("models/a/v0")
    log = anywhere.get_bytes("models/a/2/release.jsonl")
    anywhere.put_bytes("models/a/2/release.jsonl", log.replace(b'"by": null', b'"by": "bob"'))
    code, said = engine(anywhere, capsys, "--public-key", str(public))
    assert (code, "is not the last line that" in said) == (2, True)
    assert engine(anywhere, capsys, "--public-key", str(public), "--release", "a@1")[0] == 0
    assert engine(anywhere, capsys, "--public-key", str(tmp_path / "none"))[0] == 2
