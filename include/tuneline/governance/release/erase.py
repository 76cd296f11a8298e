"""Erasure: find the data about a person in a store, and delete it.

A row is about the person if one of its texts names them, or if the row that it was made from does:
scrubbed rows keep the id of the row that was read. Rows of tables are deleted, texts of documents
are replaced. What a release states by its hash can't change; where the tables that it was trained
on do, its log says so, and `tuneline verify` reads that.

`erasures/<hash of the subject>.json` holds what was found until it is erased, so that one that was
killed is ended by the next.
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from tuneline.artifacts.release_log import Erased, read_log
from tuneline.artifacts.releases import MANIFEST_FILE, POINTERS, find_version
from tuneline.catalogue import get_step
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import base_id
from tuneline.errors import UserError, first_line
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.run import now
from tuneline.store import CorruptObject, NotThere, Store, sha256_file

PREFIX = "erasures"
_IN_PLACE = "[erased]"
_SHORTEST, _PHONE = 4, range(7, 16)
_NUMBER = re.compile(r"\d(?:[ ().\-/]{0,3}\d){6,}")
_OF_A_MODEL = ("logs", "curated", "labels", "drift", "quarantine/answers")
_TABLES, _TEXTS = (".parquet", ".jsonl", ".json"), (".csv", ".md", ".html", ".txt")
# Vocabularies hold every word.
_VOCABULARY = re.compile(r"/(tokenizer(_config)?|vocab|added_tokens|special_tokens_map)\.json$")
_BATCH = 1 << 14
_SOURCE = "rows came from it; delete them there, or they are read again"
_WEIGHTS = (
    "were trained with rows about the subject and may repeat them: train again without them, "
    "release that, and prune this version"
)
_NOT_SEARCHED = (
    "not searched: backups, earlier versions of objects in a versioned bucket, the spools of "
    "gateways (erase again when they are uploaded), the names in keys and ledger, trackers, and "
    "sheets that people have exported"
)

Drop = Callable[[Any], bool]


class Subject:
    """A person, by a text that names them: a name, an address, a number."""

    def __init__(self, text: str) -> None:
        """Normalise the text; UserError if it is too short to name anybody."""
        self._words = _normal(text)
        if len(self._words) < _SHORTEST:
            raise UserError(f"the subject has fewer than {_SHORTEST} letters and digits")
        self.sha256 = sha256(self._words.encode()).hexdigest()
        digits = re.sub(r"\D", "", text)
        only_digits = not re.search(r"[^\d +().\-/]", text.strip())
        self._digits = _national(text, digits) if only_digits and len(digits) in _PHONE else ""

    def names(self, text: str) -> bool:
        """Return True if a text holds the subject as whole words, or its number in any form."""
        if f" {self._words} " in f" {_normal(text)} ":
            return True
        numbers = _NUMBER.findall(text) if self._digits else ()
        return any(self._digits in re.sub(r"\D", "", number) for number in numbers)

    def within(self, value: Any) -> bool:
        """Return True if a text of a document names the subject."""
        return any(map(self.names, _texts(value)))


def _normal(text: str) -> str:
    return normalise(unicodedata.normalize("NFKC", text))


def _national(text: str, digits: str) -> str:
    """Return a number without its country's code, which not every text states."""
    import phonenumbers

    if text.strip().startswith("+"):
        with suppress(phonenumbers.NumberParseException):
            return str(phonenumbers.parse(text).national_number)
    return digits.lstrip("0")


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a document, and those of JSON within a text."""
    if isinstance(value, str):
        yield value
        if value[:1] in ("{", "["):
            with suppress(ValueError, RecursionError):
                yield from _texts(json.loads(value))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(name)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _ids(value: Any) -> set[str]:
    """Return the ids by which a row is known elsewhere."""
    named = (value.get(key) for key in ("row_id", "request_id")) if isinstance(value, dict) else ()
    return {base_id(each) for each in named if isinstance(each, str) and each}


def _filtered(path: Path, out: Path | None, drop: Drop) -> int:
    """Write a file without what `drop` takes; None writes nothing. Return the number taken."""
    match path.suffix:
        case ".parquet":
            return _table(path, out, drop)
        case ".json":
            value, taken = _without(json.loads(path.read_bytes()), drop)
            text = json.dumps(value, indent=1, ensure_ascii=False)
        case ".jsonl":
            lines = path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if not (line and drop(_parsed(line)))]
            taken, text = len(lines) - len(kept), "\n".join(kept)
        case _:
            with path.open(encoding="utf-8", errors="replace") as handle:
                return sum(map(drop, handle))
    if out:
        out.write_text(text, encoding="utf-8")
    return taken


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _table(path: Path, out: Path | None, drop: Drop) -> int:
    source, taken = pq.ParquetFile(path), 0
    schema = source.schema_arrow
    writer = pq.ParquetWriter(out, schema, compression="zstd") if out else None
    for batch in source.iter_batches(_BATCH):
        kept = [not drop(row) for row in batch.to_pylist()]
        taken += kept.count(False)
        if writer:
            writer.write_batch(batch.filter(pa.array(kept, pa.bool_())))
    if writer:
        writer.close()
    return taken


def _without(value: Any, drop: Drop) -> tuple[Any, int]:
    """Return a document without rows that `drop` takes, its texts replaced, and how many."""
    taken = 0
    if isinstance(value, str):
        return (_IN_PLACE, 1) if drop(value) else (value, 0)
    if isinstance(value, list):
        kept = [inner for inner in value if not (_ids(inner) and drop(inner))]
        taken, found = len(value) - len(kept), [_without(inner, drop) for inner in kept]
        return [inner for inner, _ in found], taken + sum(count for _, count in found)
    if isinstance(value, dict):
        pairs = [(*_without(k, drop), *_without(v, drop)) for k, v in value.items()]
        return {k: v for k, _, v, _ in pairs}, sum(m + n for _, m, _, n in pairs)
    return value, 0


class Erasure(BaseModel):
    """The stored record of an erasure, `erasures/<hash of the subject>.json`."""

    schema_: str = Field("tuneline/erasure/1", alias="schema")
    subject_sha256: str
    by: str
    at: str
    done: bool = False
    files: dict[str, int] = {}  # rows and texts by key
    sources: list[str] = []  # files outside of the store from which rows came
    trained: list[str] = []  # versions that were trained with rows, or started from such weights
    left: list[str] = []  # sentences on what can't be erased
    ids: dict[str, list[str]] = {}  # of rows, by run or model, until they are erased


class Eraser:
    """The search for one subject in one store."""

    def __init__(self, store: Store, subject: Subject, by: str) -> None:
        """Take up an erasure of the subject that was not ended."""
        self._store, self._subject = store, subject
        self._key = f"{PREFIX}/{subject.sha256}.json"
        self.found = Erasure(subject_sha256=subject.sha256, by=by, at=now())
        with suppress(NotThere):
            earlier = Erasure.model_validate_json(store.get_bytes(self._key))
            if not earlier.done:
                self.found = earlier.model_copy(update={"by": by, "at": now(), "left": []})
        self._sources: set[str] = {*self.found.sources}

    def search(self) -> Erasure:
        """Find everything; nothing changes."""
        for group, prefixes in self._groups().items():
            self._search_group(group, prefixes)
        self._search_releases()
        self.found.sources = sorted(self._sources)
        self.found.left = [
            *dict.fromkeys(self.found.left),
            *(f"{s}: {_SOURCE}" for s in self.found.sources),
            *(f"the weights of {v} {_WEIGHTS}" for v in self.found.trained),
            _NOT_SEARCHED,
        ]
        return self.found

    def _groups(self) -> dict[str, list[str]]:
        """Return what shares ids of rows: each run, and all that is kept of a model's requests."""
        runs = sorted({key.split("/")[1] for key in self._store.keys("runs")})
        models = {
            key.removeprefix(f"{root}/").split("/")[0]
            for root in _OF_A_MODEL
            for key in self._store.keys(root)
        }
        groups = {f"runs/{run}": [f"runs/{run}"] for run in runs}
        return groups | {f"logs/{m}": [f"{r}/{m}" for r in _OF_A_MODEL] for m in sorted(models)}

    def _files(self, prefixes: list[str]) -> Iterator[tuple[str, Path]]:
        """Yield the files that hold texts, each fetched until the next is asked for."""
        with tempfile.TemporaryDirectory(prefix="tuneline-erase-") as scratch:
            for prefix in prefixes:
                for key in self._store.keys(prefix):
                    path = Path(scratch, "file").with_suffix(Path(key).suffix)
                    if path.suffix not in (*_TABLES, *_TEXTS) or _VOCABULARY.search(key):
                        continue
                    try:
                        self._store.get_file(key, path)
                    except NotThere:
                        continue
                    except CorruptObject as error:
                        self.found.left.append(f"not searched: {error}")
                        continue
                    yield key, path

    def _count(self, key: str, path: Path, drop: Drop) -> int:
        try:
            return _filtered(path, None, drop)
        except (ValueError, RecursionError) as error:
            uri = self._store.uri_of(key)
            self.found.left.append(f"not searched: {uri} can't be read: {first_line(error)}")
            return 0

    def _drop(self, group: str) -> Drop:
        """Return what takes a row by its texts, or by the id of a row that was found."""
        ids = {*self.found.ids.get(group, ())}
        return lambda row: bool(ids & _ids(row)) or self._subject.within(row)

    def _search_group(self, group: str, prefixes: list[str]) -> None:
        ids = {*self.found.ids.get(group, ())}

        def note(row: Any) -> bool:
            if not self._subject.within(row):
                return False
            ids.update(_ids(row))
            return True

        if not sum(self._count(*file, note) for file in self._files(prefixes)) and not ids:
            return
        self.found.ids[group] = sorted(ids)
        drop = self._drop(group)

        def taken(row: Any) -> bool:
            found = drop(row)
            if found and isinstance(row, dict) and row.get("source_file"):
                self._sources.add(str(row["source_file"]))
            return found

        for key, path in self._files(prefixes):
            rows = self._count(key, path, taken)
            if rows and path.suffix in _TEXTS:
                self.found.left.append(f"{self._store.uri_of(key)} names the subject: delete it")
            elif rows:
                self.found.files[key] = rows

    def _search_releases(self) -> None:
        """Find the versions that were trained with what was found, and the files that name it."""
        trained, starts = {*self.found.trained}, {}
        for key in self._store.keys("models"):
            _, name, *rest = key.split("/")
            if rest[1:] != [MANIFEST_FILE]:
                continue
            version = rest[0]
            if (release := find_version(self._store, name, version)) is None:
                continue
            file, lora = release.manifest.dataset_file, release.manifest.hyperparameters.get("lora")
            if file is not None and file.key in self.found.files:
                trained.add(f"{name}/{version}")
            if start := (lora or {}).get("started_from"):
                starts[f"{name}/{version}"] = f"{name}/{start['version']}"
        while more := {v for v, start in starts.items() if start in trained} - trained:
            trained |= more
        self.found.trained = sorted(trained)
        for key, path in self._files(["models"]):
            if self._count(key, path, self._subject.within):
                why = "is part of a version, whose files can't change"
                self.found.left.append(f"{self._store.uri_of(key)} names the subject, and {why}")

    def erase(self) -> Erasure:
        """Delete what was found."""
        self._keep()
        for group, prefixes in self._groups().items():
            if group in self.found.ids:
                for key, path in self._files(prefixes):
                    if key in self.found.files:
                        self._rewrite(group, key, path)
        self.found = self.found.model_copy(update={"done": True, "ids": {}})
        self._keep()
        return self.found

    def _keep(self) -> None:
        document = self.found.model_dump_json(indent=1, by_alias=True)
        self._store.put_bytes(self._key, document.encode())
        self._store.flush()

    def _rewrite(self, group: str, key: str, path: Path) -> None:
        """Put a file without the rows in its place, then what states its hash."""
        if key.startswith("quarantine/"):
            # Answers that nobody has taken yet: half of them is no form.
            self._store.delete([key])
            return
        out = path.with_name(f"rest{path.suffix}")
        rows = _filtered(path, out, self._drop(group))
        digest = sha256_file(out if rows else path)
        self._log(key, digest)
        if rows and key.startswith("labels/"):
            # Its name is the hash of its bytes.
            if out.stat().st_size:
                self._store.put_file(f"{key.rpartition('/')[0]}/{digest}.jsonl", out)
            self._store.delete([key])
        elif rows:
            self._store.put_file(key, out)
        self._restate(key, digest, out if rows else path)

    def _log(self, key: str, digest: str) -> None:
        """Log with the releases that were trained on a table that it changes."""
        for version in self.found.trained:
            name, _, number = version.partition("/")
            release = find_version(self._store, name, number)
            file = release.manifest.dataset_file if release else None
            if release is None or file is None or file.key != key or file.sha256 == digest:
                continue
            change = (file.sha256, digest)
            lines = read_log(self._store, name, number).lines()
            if any(isinstance(e := x.event, Erased) and e.files.get(key) == change for x in lines):
                continue
            stated = release.manifest.dataset.get("sources") or []
            event = Erased(
                by=self.found.by,
                subject_sha256=self.found.subject_sha256,
                rows=self.found.files[key],
                files={key: change},
                sources=[n for n in map(itemgetter("name"), stated) if n in self._sources],
            )
            for which in POINTERS:
                pointed = read_pointer(self._store, name, which)
                if pointed.pointer and number in pointed.pointer.heads:
                    record(pointed, number, release.sha256, [event])

    def _restate(self, key: str, digest: str, path: Path) -> None:
        """Write the new hash of a file where its step or its curated day states it."""
        first, *parts = key.split("/")
        if first == "runs" and len(parts) > 3:
            quarantined = parts[1] == "quarantine"
            phase = get_step(parts[2]).phase if quarantined else parts[1]
            for name in ("evidence.json", "record.json"):
                document = f"runs/{parts[0]}/{phase}/{parts[2]}/{name}"
                self._replace(document, "artifacts", key, digest, path)
        elif first == "curated" and len(parts) == 4:
            evidence = "/".join([first, *parts[:3], "evidence.json"])
            stated = self._replace(evidence, "files", parts[3], digest, path)
            pointer = "/".join([first, *parts[:2], "current.json"])
            with suppress(NotThere):
                current = json.loads(self._store.get_bytes(pointer))
                if stated and current["folder"] == parts[2]:
                    current["evidence_sha256"] = stated
                    self._store.put_bytes(pointer, json.dumps(current, indent=1).encode())

    def _replace(self, key: str, field: str, name: str, digest: str, path: Path) -> str:
        """Replace hash, size and rows of a file in a document; return the document's new hash."""
        try:
            document = json.loads(self._store.get_bytes(key))
        except NotThere:
            return ""
        for entry in document.get(field, ()):
            if str(entry.get("uri") or entry["name"]).endswith(name):
                entry |= {"sha256": digest, "bytes": path.stat().st_size}
                if path.suffix == ".parquet" and entry.get("rows") is not None:
                    entry["rows"] = pq.ParquetFile(path).metadata.num_rows
        raw = json.dumps(document, indent=1, ensure_ascii=False).encode()
        return self._store.put_bytes(key, raw).sha256
