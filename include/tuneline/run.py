"""A run in the store, and the context of one of its steps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tuneline import CONTRACT_VERSION
from tuneline.catalogue import Item, get_item, get_step, is_helper
from tuneline.config import PipelineConfig, Policy, read_policy, validate_config
from tuneline.config.policy import recorded_policy
from tuneline.errors import StepNotRun, UserError
from tuneline.evidence import (
    Evidence,
    FileRef,
    Measurement,
    Record,
    Verdict,
    conclude,
    load_evidence,
)
from tuneline.reads import (
    MEASUREMENTS,
    ObservedConfig,
    Reads,
    hash_measurements,
    hash_sections,
)
from tuneline.store import NotThere, Store, open_store
from tuneline.surroundings import airflow_identity, environment

T = TypeVar("T")


def now() -> str:
    """Return the time in UTC, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        store: the store.
        prefix: the run's prefix in it, `runs/<run_id>`.
        config: the run's configuration.
        meta: the content of `run.json`.
        sections: hash of each section of `config.json`.
        reads: where a step's looks at the run are noted; None outside of steps.
    """

    store: Store
    prefix: str
    config: PipelineConfig
    meta: dict[str, Any]
    sections: dict[str, str] = field(default_factory=dict)
    reads: Reads | None = field(default=None, compare=False)

    @property
    def uri(self) -> str:
        """`<store>/runs/<run_id>`."""
        return self.store.uri_of(self.prefix)

    @property
    def run_id(self) -> str:
        """The last part of the URI."""
        return self.prefix.rsplit("/", 1)[-1]

    @property
    def policy(self) -> Policy:
        """The platform's policy when the run was created.

        Raises:
            UserError: if its text is not the one that was recorded.
        """
        return recorded_policy(self.meta.get("policy"), f"{self.uri}/run.json")

    @classmethod
    def create(
        cls, store_uri: str, run_id: str, config: PipelineConfig, meta: Mapping[str, Any]
    ) -> Run:
        """Create a run: write `config.json` and `run.json`.

        A retried task creates its run again; that is refused only if the configuration
        differs.

        Args:
            store_uri: the store.
            run_id: the run's name.
            config: the configuration.
            meta: further fields of `run.json`.

        Raises:
            UserError: if the run exists with another configuration.
        """
        store = open_store(store_uri)
        prefix = f"runs/{run_id}"
        document = json.dumps(config.model_dump(mode="json"), indent=1).encode()
        if store.exists(f"{prefix}/config.json"):
            if store.get_bytes(f"{prefix}/config.json") != document:
                raise UserError(
                    f"{store.uri_of(prefix)} exists with another configuration; "
                    "choose another run id"
                )
        else:
            described = {
                "schema": "tuneline/run/1",
                "run_id": run_id,
                "contract": CONTRACT_VERSION,
                "created_at": now(),
                **meta,
                "policy": read_policy().recorded(),
            }
            store.put_bytes(f"{prefix}/run.json", json.dumps(described, indent=1).encode())
            store.put_bytes(f"{prefix}/config.json", document)
        return cls.open(store.uri_of(prefix))

    @classmethod
    def open(cls, uri: str) -> Run:
        """Open a run by its URI.

        Raises:
            UserError: if there is no such run, or it was made for another contract version.
        """
        root, separator, run_id = uri.rstrip("/").rpartition("/runs/")
        if not separator or "/" in run_id:
            raise UserError(f"{uri!r} is not a run; a run's URI ends in /runs/<run_id>")
        store = open_store(root)
        prefix = f"runs/{run_id}"
        try:
            config = json.loads(store.get_bytes(f"{prefix}/config.json"))
            meta = json.loads(store.get_bytes(f"{prefix}/run.json"))
        except NotThere:
            raise UserError(f"there is no run at {uri}; `tuneline run create` makes one") from None
        if meta.get("contract") != CONTRACT_VERSION:
            raise UserError(
                f"{uri} was made for contract {meta.get('contract')}, this image speaks "
                f"{CONTRACT_VERSION}; use the image that matches the DAG"
            )
        valid = validate_config(config, f"{uri}/config.json")
        return cls(store, prefix, valid, meta, hash_sections(config))

    def observed_by(self, step: str) -> Run:
        """Return the run as a step sees it, which notes what the step reads."""
        reads = Reads(step)
        config = ObservedConfig.of(self.config, self.sections, reads)
        return replace(self, config=config, reads=reads)

    def note(self, step: str, name: str, sha256: str | None) -> None:
        """Note that the step at work has read something; see `Reads.note`."""
        if self.reads is not None:
            self.reads.note(step, name, sha256)

    def key(self, *parts: str) -> str:
        """Return a key below the run."""
        return "/".join((self.prefix, *parts))

    def step_key(self, step: str, name: str = "") -> str:
        """Return a key below a step's folder; without a name, that of the folder."""
        return self.key(get_step(step).phase, step, *([name] if name else []))

    def find_evidence(self, item: str) -> Evidence | None:
        """Return an item's evidence, or None if the item has not been run."""
        entry = self.find_entry(item)
        self._note_measurements(item, entry)
        assert not isinstance(entry, Record)
        return entry

    def entry(self, step: str) -> Evidence | Record:
        """Return the evidence of an item, or the record of a helper step.

        Raises:
            StepNotRun: if the step has not been run.
        """
        entry = self.find_entry(step)
        self._note_measurements(step, entry)
        if entry is None:
            raise StepNotRun(f"{step} has not been run in {self.uri}; run it first")
        return entry

    def find_entry(self, step: str) -> Evidence | Record | None:
        """Return the evidence or record of a step, None if it has not been run.

        For a look at its artifacts: its measurements are not noted as read.
        """
        key = self.step_key(step, "record.json" if is_helper(step) else "evidence.json")
        try:
            raw = self.store.get_bytes(key)
        except NotThere:
            return None
        if is_helper(step):
            return Record.model_validate_json(raw)
        return load_evidence(raw, self.store.uri_of(key))

    def _note_measurements(self, step: str, entry: Evidence | Record | None) -> None:
        if self.reads is not None:
            self.note(step, MEASUREMENTS, None if entry is None else hash_measurements(entry))


@dataclass
class StepContext:
    """The surroundings of a step at work.

    Attributes:
        run: the run.
        step: id of the item or helper step.
        out: the folder for what the step leaves.
        quarantine: the folder for raw text of people.
        scratch: a folder that is thrown away.
        inputs: the files that the step has read, by name.
        started_at: the time at which it started, RFC 3339.
    """

    run: Run
    step: str
    out: Path
    quarantine: Path
    scratch: Path
    inputs: dict[str, FileRef] = field(default_factory=dict)
    started_at: str = field(default_factory=now)
    _clock: float = field(default_factory=time.monotonic)
    _rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note from now on what the step reads of its run."""
        self.run = self.run.observed_by(self.step)

    @property
    def config(self) -> PipelineConfig:
        """The run's configuration."""
        return self.run.config

    @property
    def item(self) -> Item:
        """The item of a step that is one."""
        return get_item(self.step)

    def entry(self, step: str) -> Evidence | Record:
        """Return the evidence or record of an earlier step."""
        return self.run.entry(step)

    def has(self, step: str, name: str) -> bool:
        """Return True if an earlier step left an artifact of that name.

        Raises:
            StepNotRun: if the step has not been run.
        """
        found = next((ref for ref in self._artifacts(step) if ref.name == name), None)
        self.run.note(step, name, found.sha256 if found else None)
        return found is not None

    def input(self, step: str, name: str) -> Path:
        """Fetch an artifact of an earlier step, verified against the hash it recorded.

        Args:
            step: the item or helper that wrote it.
            name: its path relative to that step's folder; `quarantine/…` for raw text.

        Raises:
            UserError: if the step has not been run, or left no such artifact.
            CorruptObject: if the bytes are not the recorded ones.
        """
        for ref in self._artifacts(step):
            if ref.name == name:
                return self._fetch(step, ref)
        raise self._nothing(step, f"no artifact {name!r} in")

    def input_dir(self, step: str, folder: str) -> Path:
        """Fetch every artifact below a folder of an earlier step; see `input`."""
        refs = [r for r in self._artifacts(step) if r.name.startswith(folder + "/")]
        if not refs:
            raise self._nothing(step, f"no artifacts below {folder!r} in")
        for ref in refs:
            self._fetch(step, ref)
        return self.scratch / "inputs" / step / folder

    def _artifacts(self, step: str) -> list[FileRef]:
        entry = self.run.find_entry(step)
        return self.entry(step).artifacts if entry is None else entry.artifacts

    def _nothing(self, step: str, what: str) -> UserError:
        return UserError(f"{step} left {what} {self.run.uri}: {self.entry(step).summary}")

    def fetched_hashes(self, path: Path) -> dict[str, str]:
        """Return the SHA-256 of each file that `input` or `input_dir` fetched to a path, by name.

        The bytes were compared with it as they were fetched, so no file is read again.
        """
        name = path.relative_to(self.scratch / "inputs").as_posix()
        if path.is_file():
            return {path.name: self.inputs[name].sha256}
        return {
            known.removeprefix(f"{name}/"): ref.sha256
            for known, ref in self.inputs.items()
            if known.startswith(f"{name}/")
        }

    def _fetch(self, step: str, ref: FileRef) -> Path:
        self.run.note(step, ref.name, ref.sha256)
        target = self.scratch / "inputs" / step / ref.name
        if not target.exists():
            self.run.store.get_file(self.run.store.key_of(ref.uri), target, sha256=ref.sha256)
            name = f"{step}/{ref.name}"
            self.inputs[name] = ref.model_copy(update={"name": name})
        return target

    def read_json(self, step: str, name: str) -> Any:
        """Read a JSON file of an earlier step; see `input`.

        What several steps read has a name and a model in `tuneline.artifacts`.
        """
        return json.loads(self.input(step, name).read_bytes())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of this step.

        Args:
            name: its path relative to the step's folder.
            content: the content, as `json.dumps` takes it.
        """
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")

    def note_input(self, name: str, uri: str, path: Path, rows: int | None = None) -> None:
        """Note a file from outside the run (the base model, votes) among the inputs."""
        from tuneline.store import sha256_file

        self.inputs[name] = FileRef(
            name=name, uri=uri, sha256=sha256_file(path), bytes=path.stat().st_size, rows=rows
        )

    def log(self, message: str) -> None:
        """Print a line of progress to stderr."""
        print(f"[{self.step}] {message}", file=sys.stderr, flush=True)

    def progress(self, items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
        """Iterate with a bar in a terminal, or a line every few seconds in a log; see `track`."""
        from tuneline.progress import track

        return track(items, total, f"[{self.step}] {what}")

    def conclude(
        self,
        summary: str,
        measurements: Sequence[Measurement] = (),
        *,
        verdict: Verdict | None = None,
        rows: Mapping[str, int] | None = None,
    ) -> Evidence:
        """Make the item's evidence; artifacts are added when the step's files are stored.

        Args:
            summary: one sentence for a person.
            measurements: the measurements, from which the verdict follows.
            verdict: a verdict that does not follow from measurements (not applicable).
            rows: row counts of artifacts, by name.
        """
        item = self.item
        return Evidence(
            item=item.id,
            phase=item.phase,
            severity=item.severity,
            verdict=conclude(measurements) if verdict is None else verdict,
            **self._findings(summary, measurements, rows),
        )

    def record(
        self,
        summary: str,
        measurements: Sequence[Measurement] = (),
        *,
        rows: Mapping[str, int] | None = None,
    ) -> Record:
        """Make the record of a helper step; see `conclude`."""
        phase = get_step(self.step).phase
        found = self._findings(summary, measurements, rows)
        return Record(step=self.step, phase=phase, **found)

    def rows_of(self, name: str) -> int | None:
        """Return the row count that `conclude` was given for an artifact."""
        return self._rows.get(name)

    def _findings(
        self, summary: str, measurements: Sequence[Measurement], rows: Mapping[str, int] | None
    ) -> dict[str, Any]:
        self._rows = dict(rows or {})
        return {
            "summary": summary,
            "measurements": list(measurements),
            "inputs": list(self.inputs.values()),
            "reads": self.run.reads.listed() if self.run.reads else [],
            "started_at": self.started_at,
            "seconds": round(time.monotonic() - self._clock, 3),
            "environment": environment(),
            "airflow": airflow_identity(),
        }
