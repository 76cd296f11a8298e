"""The context of a step at work: what it reads of its run, and the evidence it leaves."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tuneline.catalogue import Item, get_item, get_step
from tuneline.config import PipelineConfig
from tuneline.environment import airflow_identity, environment
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import Evidence, FileRef, Measurement, Record, Verdict, conclude
from tuneline.files import inside
from tuneline.run import Run, now
from tuneline.terminal import LOG_SECONDS, to_stderr, track

T = TypeVar("T")


@dataclass
class StepContext:
    """The surroundings of a step at work.

    Attributes:
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
    _noted: float = -math.inf

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
        """Return True if an earlier step left an artifact of that name."""
        found = next((ref for ref in self._artifacts(step) if ref.name == name), None)
        self.run.note(step, name, found.sha256 if found else None)
        return found is not None

    def input(self, step: str, name: str) -> Path:
        """Fetch an artifact of an earlier step, verified against the hash it recorded.

        Args:
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
        target = inside(self.scratch / "inputs" / step, ref.name)
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
        """Write a JSON file of this step."""
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
        """Print a line of progress to stderr, and keep it in the run for those who watch."""
        to_stderr(f"[{self.step}] {message}")
        if time.monotonic() - self._noted >= LOG_SECONDS:
            self._noted = time.monotonic()
            # A store that can't be reached now is a matter of the step's files.
            with contextlib.suppress(TunelineError, OSError):
                self.run.note_progress(self.step, message)

    def progress(self, items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
        """Iterate with a bar in a terminal, or a line every few seconds in a log; see `track`."""
        return track(items, total, what, self.log)

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
            verdict: a verdict that does not follow from measurements (not applicable).
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
