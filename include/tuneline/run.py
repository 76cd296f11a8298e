"""A run in the store: its configuration, and the evidence that its steps left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import PrivateAttr

from tuneline import CONTRACT_VERSION
from tuneline.catalogue import get_step, is_helper, steps_after
from tuneline.config import PipelineConfig, Policy, read_policy, validate_config
from tuneline.config.data import AUTO
from tuneline.config.policy import recorded_policy
from tuneline.config.retired import current
from tuneline.errors import StepNotRun, TunelineError, UserError
from tuneline.evidence import Evidence, Read, Record, load_evidence
from tuneline.store import NotThere, Store, open_store

# What `Read.step` and `Read.name` say where no file was read.
CONFIG, MEASUREMENTS = "config", "measurements"
_SECTIONS = frozenset(PipelineConfig.model_fields)


class Reads:
    """What a step at work has read, in the order of its first look.

    Args:
        step: id of the step. What it left itself before, and what the steps after it left, are no
            inputs: a later run of these must not make it out of date.
    """

    def __init__(self, step: str) -> None:
        self._others = {step} | steps_after(step)
        self._found: dict[tuple[str, str], str | None] = {}

    def note(self, step: str, name: str, sha256: str | None) -> None:
        """Note a look at an artifact of an earlier step, or at its `MEASUREMENTS`; see `Read`."""
        if step not in self._others:
            self._found[step, name] = sha256

    def listed(self) -> list[Read]:
        """Return what was read."""
        return [Read(step=s, name=n, sha256=digest) for (s, n), digest in self._found.items()]


class ObservedConfig(PipelineConfig):
    """A configuration that notes which of its sections are read."""

    _reads: Reads = PrivateAttr()
    _hashes: Mapping[str, str] = PrivateAttr()

    @classmethod
    def of(cls, config: PipelineConfig, hashes: Mapping[str, str], reads: Reads) -> ObservedConfig:
        """Return a configuration as a step sees it, with the hashes of its sections."""
        values = {name: getattr(config, name) for name in _SECTIONS}
        observed = cls.model_construct(**values)
        observed._reads, observed._hashes = reads, hashes
        return observed

    def __getattribute__(self, name: str) -> Any:
        if name in _SECTIONS:
            self._reads.note(CONFIG, name, self._hashes.get(name))
        return super().__getattribute__(name)


def hash_measurements(entry: Evidence | Record) -> str:
    """Return the SHA-256 of the verdict and the measurements of a step.

    Times that only inform are left out: they differ whenever a step is run again.
    """
    return _sha256(
        {
            "verdict": getattr(entry, "verdict", None),
            "measurements": [
                m.model_dump(mode="json")
                for m in entry.measurements
                if m.unit != "s" or m.rule is not None
            ],
        }
    )


def _sha256(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


# What schema_validation states: the field of the class, empty for no class.
LABEL_FIELD = "label_field"


# A step that has said nothing for longer is not known to run.
_SILENCE = timedelta(minutes=5)


def now() -> str:
    """Return the time in UTC, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        prefix: the run's prefix in the store, `runs/<run_id>`.
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
        """The platform's policy when the run was created; another text is refused."""
        return recorded_policy(self.meta.get("policy"), f"{self.uri}/run.json")

    @classmethod
    def create(
        cls, store_uri: str, run_id: str, config: PipelineConfig, meta: Mapping[str, Any]
    ) -> Run:
        """Create a run: write `config.json` and `run.json`.

        A retried task creates its run again; that is refused if the configuration differs, or
        if another run in Airflow has made it.

        Args:
            meta: further fields of `run.json`.
        """
        store = open_store(store_uri)
        prefix = f"runs/{run_id}"
        document = json.dumps(config.model_dump(mode="json"), indent=1).encode()
        if store.exists(f"{prefix}/config.json"):
            known = _airflow_run(json.loads(store.get_bytes(f"{prefix}/run.json")))
            if known != _airflow_run(meta):
                raise UserError(
                    f"{store.uri_of(prefix)} belongs to {known or 'a run without Airflow'}; choose "
                    "another run id"
                )
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
            store.flush()
        return cls.open(store.uri_of(prefix))

    @classmethod
    def open(cls, uri: str, step: str = "") -> Run:
        """Open a run by its URI.

        Args:
            step: the step that opens it; schema_validation finds the class anew.

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
        valid = validate_config(current(config), f"{uri}/config.json")
        run = cls(store, prefix, valid, meta, {n: _sha256(part) for n, part in config.items()})
        finds = step == "schema_validation" or valid.data.label_field != AUTO
        return run if finds else run._with_class()

    def _with_class(self) -> Run:
        """Return the run with the field of the class, once schema_validation has stated one."""
        entry = self.find_entry("schema_validation")
        stated = [m.value for m in entry.measurements if m.name == LABEL_FIELD] if entry else []
        if not stated:
            return self  # a try that raised has stated nothing
        data = self.config.data.model_copy(update={"label_field": stated[0] or None})
        return replace(self, config=self.config.model_copy(update={"data": data}))

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

    def note_progress(self, step: str, text: str) -> None:
        """Replace the line that says how far a step is; see `in_progress`."""
        line = json.dumps({"at": now(), "text": text}, ensure_ascii=False)
        self.store.put_bytes(self.key("progress", step, "line.json"), line.encode())

    def end_progress(self, step: str) -> None:
        """Remove the line of a step that has ended."""
        self.store.delete_prefix(self.key("progress", step))

    def in_progress(self) -> dict[str, str]:
        """Return the last line of each step that is running and has said how far it is."""
        lines = {}
        # A step that ends meanwhile takes its line away; whoever watches needs no error for it.
        with suppress(TunelineError, OSError):
            for key in self.store.keys(self.key("progress")):
                with suppress(TunelineError, OSError):
                    line = json.loads(self.store.get_bytes(key))
                    # A step that was killed leaves its line behind.
                    if datetime.now(UTC) - datetime.fromisoformat(line["at"]) < _SILENCE:
                        lines[key.split("/")[-2]] = str(line["text"])
        return lines

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


def _airflow_run(meta: Mapping[str, Any]) -> str:
    """Return which run in Airflow made a run, empty if none did."""
    named = meta.get("airflow") or {}
    return f"{named['run_id']} of {named['dag_id']}" if named else ""
