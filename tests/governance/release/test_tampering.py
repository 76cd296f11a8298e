"""Every change behind the back of a release is found and named; the clean release is not."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.governance import DatasetFile, Manifest, ManifestFile
from tuneline.artifacts.release_log import Approved, Canary, Released
from tuneline.errors import RetryableError, UserError
from tuneline.governance.release.manifest import put_once, write_manifest
from tuneline.governance.release.pointer import last_move, read_pointer, record
from tuneline.governance.release.verify import examine, verify
from tuneline.store import FileStore, open_store, sha256_file

FILES = {"model.gguf": b"weights" * 50, "adapter/config.json": b"{}", "lora.json": b'{"r": 16}'}
APPROVED = Approved(subject="approve_release", decision="Approve", by="alice", answered_at="now")
CANARY = Canary(share=0.1, outcome="started", summary="a tenth of the requests")
MODEL = Path("models/m")


def seal(store, key, data):
    """Write bytes with a fitting hash file, as somebody does who knows the store."""
    store.put_bytes(str(key), data)


def release(store, version, source):
    files = []
    for name, content in FILES.items():
        ref = store.put_bytes(f"models/m/{version}/{name}", content)
        files.append(ManifestFile(name=name, sha256=ref.sha256, bytes=ref.bytes))
    key = f"runs/{version}/data/distribution_balancing/dataset.parquet"
    data = store.put_bytes(key, b"rows of " + version.encode())
    note = {"name": str(source), "address": str(source), "bytes": source.stat().st_size}
    note["sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
    manifest = Manifest(
        name="m",
        version=version,
        dataset={"version": "d", "sources": [note]},
        dataset_file=DatasetFile(key=key, sha256=data.sha256, bytes=data.bytes),
        files=files,
    )
    digest = write_manifest(store, f"models/m/{version}", manifest)
    pointed = read_pointer(store, "m")
    previous, follows = last_move(pointed)
    released = Released(
        previous_version=previous, follows=follows, run=store.uri_of(f"runs/{version}")
    )
    record(pointed, version, digest, [APPROVED, released])
    record(read_pointer(store, "m"), version, digest, [CANARY])


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A store with the releases a and b, and the file that their dataset was read from."""
    root = tmp_path_factory.mktemp("clean")
    source = root / "rows.jsonl"
    source.write_text('{"prompt": "hello"}\n')
    store = open_store((root / "store").as_uri())
    release(store, "a", source)
    release(store, "b", source)
    return store, source


@pytest.fixture
def store(clean, tmp_path):
    return FileStore(Path(shutil.copytree(clean[0].root, tmp_path / "store")))


def found(store, version="b"):
    return verify(store.uri_of(f"models/m/{version}/manifest.json"))


def lines_of(store, version):
    return store.get_bytes(f"models/m/{version}/release.jsonl").decode().splitlines()


def write_lines(store, version, lines):
    seal(store, MODEL / version / "release.jsonl", "".join(f"{t}\n" for t in lines).encode())


def test_the_clean_releases_verify(store):
    assert found(store, "a") == found(store, "b") == []
    assert examine(store.uri_of("models/m/b/manifest.json")).unchecked == []


@pytest.mark.parametrize("version", ["a", "b"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: [t[0].replace("alice", "mallory"), *t[1:]], "line 2 is not chained"),
        (lambda t: [t[0], t[1].replace('"by": null', '"by": "x"'), t[2]], "line 3 is not chained"),
        (lambda t: [*t[:2], t[2].replace("0.1", "0.2")], "line 3 is not the last line that"),
        (lambda t: [t[1], t[0], t[2]], "line 1 is not chained"),
        (lambda t: t[1:], "line 1 is not chained"),
        (lambda t: [t[0], t[2]], "line 2 is not chained"),
        (lambda t: t[:2], "has 2 lines, "),
        (lambda t: [], "does not end at the end of a line"),
        (lambda t: [*t, t[2]], "line 4 is not chained"),
        (lambda t: [*t[:2], t[2].replace("canary", "feast")], "line 3 is not an event"),
        (lambda t: [*t[:2], "no json"], "line 3 is not an event: it is not JSON"),
    ],
    ids=[
        "first line edited",
        "middle line edited",
        "last line edited",
        "re-ordered",
        "first line cut",
        "middle line cut",
        "last line cut",
        "all lines cut",
        "a line added",
        "an unknown event",
        "no event",
    ],
)
def test_a_changed_log_is_named(store, version, change, named):
    write_lines(store, version, change(lines_of(store, version)))
    differences = found(store, version)
    assert any(named in sentence and f"m/{version}/" in sentence for sentence in differences)
    # Whoever verifies another release of the model hears of it too.
    assert found(store, "a" if version == "b" else "b")


@pytest.mark.parametrize("version", ["a", "b"])
def test_a_deleted_log_is_named(store, version):
    (store.root / MODEL / version / "release.jsonl").unlink()
    assert any("release.jsonl is missing" in sentence for sentence in found(store))


def test_a_pointer_that_was_set_back_is_named(store, clean):
    """The pointer of the day before, with its own hash, while b's log stands."""
    older = FileStore(store.root.parent / "older")
    release(older, "a", clean[1])
    seal(store, MODEL / "production.json", older.get_bytes("models/m/production.json"))
    for version in ("a", "b"):
        assert any("the pointer was set back" in sentence for sentence in found(store, version))


def pointer(**fields):
    def edit(store):
        document = json.loads(store.get_bytes("models/m/production.json"))
        raw = json.dumps({**document, **fields}, indent=1).encode()
        seal(store, MODEL / "production.json", raw)

    return edit


def history(change):
    def edit(store):
        moves = json.loads(store.get_bytes("models/m/production.json"))["history"]
        pointer(history=change(moves))(store)

    return edit


def manifest(**fields):
    def edit(store):
        document = json.loads(store.get_bytes("models/m/b/manifest.json"))
        seal(store, MODEL / "b/manifest.json", json.dumps({**document, **fields}).encode())

    return edit


def another_versions(store):
    for name in ("manifest.json", "release.jsonl"):
        seal(store, MODEL / "b" / name, store.get_bytes(f"models/m/a/{name}"))


def cut_line(store):
    seal(store, MODEL / "b/release.jsonl", store.get_bytes("models/m/b/release.jsonl")[:-20])


def gone(name):
    return lambda store: (store.root / MODEL / name).unlink()


EVIDENCE = {"phase": "data", "severity": "critical", "verdict": "pass", "summary": ""}
DATASET = "runs/b/data/distribution_balancing/dataset.parquet"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (pointer(version="a"), "production.json: its version is not that of the last release"),
        (pointer(manifest="file:///x/models/m/a/manifest.json"), "its manifest is not"),
        (pointer(manifest_sha256="0" * 64), "its manifest_sha256 is not"),
        (pointer(release_sha256="0" * 64), "its release_sha256 is not"),
        (pointer(released_at="2020-01-01T00:00:00Z"), "its released_at is not"),
        (pointer(previous_version=None), "its previous_version is not"),
        (pointer(history=[]), "it names no history"),
        (pointer(lines=[]), "its lines is not"),
        (pointer(heads={}), "lines were added, or the pointer was set back"),
        (pointer(comment="harmless"), "is not in the form in which promote writes it"),
        (pointer(name="n"), "is not in the form in which promote writes it"),
        (history(lambda moves: moves[1:]), "it lacks the move to a"),
        (history(lambda moves: moves[::-1]), "the release log says that it came after"),
        (history(lambda moves: [*moves, moves[0]]), "move 3, to a, is not in the release log"),
        (
            history(lambda moves: [{**moves[0], "at": "x"}, moves[1]]),
            "the release log says released at",
        ),
        (gone("production.json"), "production.json is missing"),
        (gone("b/model.gguf"), "b/model.gguf is missing"),
        (lambda store: store.put_bytes("models/m/b/model.gguf", b"other"), "gguf is corrupt"),
        (lambda store: store.put_bytes("models/m/b/adapter/more.bin", b"x"), "a file too many"),
        (cut_line, "does not end at the end of a line"),
        (another_versions, "is the manifest of m a"),
        (manifest(x=1), "b/release.jsonl, line 1 is not chained"),
        (
            manifest(evidence={"x": {**EVIDENCE, "because": "", "file": "evidence/x.json"}}),
            "states no hash of it",
        ),
        (lambda store: seal(store, DATASET, b"other rows"), "the dataset of b: "),
        (lambda store: (store.root / DATASET).unlink(), f"{DATASET} is missing"),
    ],
)
def test_an_edit_behind_the_back_of_a_release_is_named(store, edit, named):
    edit(store)
    assert any(named in sentence for sentence in found(store))


def test_an_outage_of_the_store_at_any_read_is_no_difference(store, monkeypatch):
    reads = []

    def counted(name):
        read = getattr(FileStore, name)

        def call(self, *args, **options):
            reads.append(name)
            if len(reads) == fails_at:
                raise RetryableError("S3 failed")
            return read(self, *args, **options)

        monkeypatch.setattr(FileStore, name, call)

    for name in ("read_tagged", "get_bytes", "rehash", "exists"):
        counted(name)
    fails_at = 0
    assert found(store) == []
    for fails_at in range(1, len(reads) + 1):  # noqa: B007 - read by `call`
        reads.clear()
        with pytest.raises(RetryableError, match="S3 failed"):
            found(store)


def test_a_manifest_and_its_files_are_written_once(store, tmp_path):
    prefix, other = "models/m/b", tmp_path / "other"
    other.write_bytes(b"different")
    with pytest.raises(UserError, match="exists with other bytes"):
        put_once(store, f"{prefix}/model.gguf", other, sha256_file(other))
    raw = store.get_bytes(f"{prefix}/manifest.json")
    with pytest.raises(UserError, match="exists with other content"):
        write_manifest(store, prefix, Manifest(files=[]))
    # A step that is run again writes the same.
    other.write_bytes(FILES["model.gguf"])
    put_once(store, f"{prefix}/model.gguf", other, sha256_file(other))
    again = Manifest.model_validate_json(raw)
    assert write_manifest(store, prefix, again) == hashlib.sha256(raw).hexdigest()
    assert found(store) == []


@pytest.mark.parametrize("uri", ["file:///x/manifest.json", "nonsense", "file:///models/a/b.json"])
def test_other_uris_are_refused(uri):
    with pytest.raises(UserError, match="is not the URI of a manifest"):
        verify(uri)


def test_a_changed_source_is_named_and_one_that_is_gone_is_left_unchecked(tmp_path):
    store, source = open_store((tmp_path / "store").as_uri()), tmp_path / "rows.jsonl"
    source.write_text("{}\n")
    release(store, "a", source)
    assert found(store, "a") == []
    source.write_text("{}\n{}\n")
    [sentence] = found(store, "a")
    assert f"{source}, a source of the dataset, has changed since" in sentence
    source.unlink()
    findings = examine(store.uri_of("models/m/a/manifest.json"))
    assert findings.differences == []
    [note] = findings.unchecked
    assert "can't be read from here" in note


def test_a_hundred_random_bytes_are_all_found(store):
    """One byte of any file of the releases, the pointer and the dataset; half with a fitting hash.

    The place is drawn without looking at what `verify` reads.
    """
    draw = random.Random(5)
    files = sorted(p for p in (store.root / MODEL).rglob("*") if p.name[0] != "." and p.is_file())
    files.append(store.root / "runs/b/data/distribution_balancing/dataset.parquet")
    missed = []
    for number in range(100):
        path = draw.choice(files)
        before, sidecar = path.read_bytes(), path.with_name(f".{path.name}.sha256")
        hashes = sidecar.read_bytes()
        changed = bytearray(before)
        place = draw.randrange(len(before))
        changed[place] ^= draw.randrange(1, 256)
        if number % 2:
            seal(store, path.relative_to(store.root).as_posix(), bytes(changed))
        else:
            path.write_bytes(bytes(changed))
        whose = path.parts[path.parts.index("m") + 1] if "m" in path.parts else "b"
        if not found(store, whose if whose in ("a", "b") else "b"):
            missed.append((path.name, place))
        path.write_bytes(before)
        sidecar.write_bytes(hashes)
    assert missed == []
    assert found(store) == []


def test_the_dataset_of_a_run_is_in_its_manifest(finished_lab):
    lab: Lab = finished_lab(name="model")
    lab.leave("distribution_balancing", {"dataset.parquet": b"rows"}, [])
    lab.execute("lineage")
    uri = lab.run.store.uri_of("models/model/test/manifest.json")
    stated = json.loads((lab.root / "store/models/model/test/manifest.json").read_text())
    assert stated["dataset_file"] == {
        "key": "runs/test/data/distribution_balancing/dataset.parquet",
        "sha256": hashlib.sha256(b"rows").hexdigest(),
        "bytes": 4,
        "rows": None,
    }
    assert verify(uri) == []
    lab.artifact("distribution_balancing", "dataset.parquet").write_bytes(b"ROWS")
    [sentence] = verify(uri)
    assert "dataset.parquet is corrupt" in sentence
