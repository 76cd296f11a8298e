"""Typed names of the files that steps leave: where a file lies, and how it is read and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tuneline.store import CorruptObject

if TYPE_CHECKING:
    from tuneline.run import Run, StepContext

Model = TypeVar("Model", bound=BaseModel)

# Raw text of people lies below this folder, see `StepContext.quarantine`.
_QUARANTINE = "quarantine/"


@dataclass(frozen=True)
class Artifact:
    """A file that a step leaves.

    Attributes:
        step: the step that writes it.
        name: its path relative to the step's folder; `quarantine/…` for raw text.
    """

    step: str
    name: str

    def fetch(self, ctx: StepContext) -> Path:
        """Fetch the file, verified against the hash that its step recorded.

        Raises:
            UserError: the step has not been run, or left no such file.
            CorruptObject: the bytes are not the recorded ones.
        """
        return ctx.input(self.step, self.name)

    def exists(self, ctx: StepContext) -> bool:
        """Return True if the step has left the file.

        Raises:
            UserError: the step has not been run.
        """
        return ctx.has(self.step, self.name)

    def path(self, ctx: StepContext) -> Path:
        """Return the path at which the step itself writes the file."""
        assert ctx.step == self.step, f"{self.name} is written by {self.step}, not by {ctx.step}"
        if self.name.startswith(_QUARANTINE):
            return ctx.quarantine / self.name.removeprefix(_QUARANTINE)
        return ctx.out / self.name

    def key(self, run: Run) -> str:
        """Return the file's key in the store of a run."""
        if self.name.startswith(_QUARANTINE):
            return run.key(_QUARANTINE.rstrip("/"), self.step, self.name.removeprefix(_QUARANTINE))
        return run.step_key(self.step, self.name)


@dataclass(frozen=True)
class FolderArtifact:
    """A folder of files that a step leaves.

    Attributes:
        step: the step that writes it.
        name: its path relative to the step's folder.
    """

    step: str
    name: str

    def fetch(self, ctx: StepContext) -> Path:
        """Fetch every file of the folder; see `Artifact.fetch`."""
        return ctx.input_dir(self.step, self.name)

    def path(self, ctx: StepContext) -> Path:
        """Return the path at which the step itself writes the folder."""
        assert ctx.step == self.step, f"{self.name} is written by {self.step}, not by {ctx.step}"
        return ctx.out / self.name


@dataclass(frozen=True)
class Document(Artifact, Generic[Model]):
    """A JSON file that a step leaves, with the model of its content.

    Attributes:
        model: the pydantic model that reads and writes it.
    """

    model: type[Model]

    def read(self, ctx: StepContext) -> Model:
        """Read the document of an earlier step.

        Raises:
            UserError: the step has not been run, or left no such file.
            CorruptObject: the file is not what its step writes.
        """
        return self._parse(self.fetch(ctx).read_bytes(), ctx.run)

    def find(self, run: Run) -> Model | None:
        """Read the document from a run's store, None when it is not there."""
        key = self.key(run)
        return self._parse(run.store.get_bytes(key), run) if run.store.exists(key) else None

    def write(self, ctx: StepContext, content: Model) -> None:
        """Write the document of this step."""
        path = self.path(ctx)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content.model_dump_json(indent=1, by_alias=True)
        path.write_text(text, encoding="utf-8")

    def _parse(self, raw: bytes, run: Run) -> Model:
        try:
            return self.model.model_validate_json(raw)
        except ValidationError as error:
            where = run.store.uri_of(self.key(run))
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise CorruptObject(
                f"{where}: {field}: {problem['msg']}; run {self.step} again"
            ) from None
