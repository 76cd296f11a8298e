"""Typed names of the files that steps leave: where a file lies, and how it is read and written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from tuneline.errors import UserError
from tuneline.files import is_inner
from tuneline.store import CorruptObject, NotThere

if TYPE_CHECKING:
    from tuneline.run import Run
    from tuneline.step_context import StepContext

Model = TypeVar("Model", bound=BaseModel)


def _inner(name: str) -> str:
    if not is_inner(name):
        raise ValueError(
            f"{name!r} is not the name of a file below its folder: it must be relative, without "
            "'..', empty parts or backslashes"
        )
    return name


def _part(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} must not hold '/': it names one folder")
    return _inner(name)


# Names that a document states and that are joined to a folder: of files, of one folder.
FileName = Annotated[str, AfterValidator(_inner)]
FolderName = Annotated[str, AfterValidator(_part)]

# Raw text of people lies below this folder, see `StepContext.quarantine`.
_QUARANTINE = "quarantine/"


@dataclass(frozen=True)
class Artifact:
    """A file that a step leaves."""

    step: str
    name: str  # relative to the step's folder; `quarantine/…` for raw text

    def fetch(self, ctx: StepContext) -> Path:
        """Fetch the file, verified by its recorded hash; UserError if its step left none."""
        return ctx.input(self.step, self.name)

    def exists(self, ctx: StepContext) -> bool:
        """Return True if the step has left the file."""
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
class FolderArtifact(Artifact):
    """A folder of files that a step leaves."""

    def fetch(self, ctx: StepContext) -> Path:
        """Fetch every file of the folder; see `Artifact.fetch`."""
        return ctx.input_dir(self.step, self.name)


@dataclass(frozen=True)
class Document(Artifact, Generic[Model]):
    """A JSON file that a step leaves, with the model of its content."""

    model: type[Model]

    def read(self, ctx: StepContext) -> Model:
        """Read the document of an earlier step; CorruptObject if it is not what the step writes."""
        return self._parse(self.fetch(ctx).read_bytes(), ctx.run)

    def find(self, run: Run) -> Model | None:
        """Read the document from a run's store, None when it is not there."""
        try:
            raw = run.store.get_bytes(self.key(run))
        except NotThere:
            run.note(self.step, self.name, None)
            return None
        run.note(self.step, self.name, hashlib.sha256(raw).hexdigest())
        return self._parse(raw, run)

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
            raise CorruptObject(f"{where}: {fault(error)}; run {self.step} again") from None


@dataclass(frozen=True)
class Lines(Artifact, Generic[Model]):
    """A JSON-lines file that a step leaves, with the model of a line."""

    model: type[Model]

    def read(self, ctx: StepContext) -> list[Model]:
        """Read every line that an earlier step left; see `Document.read`."""
        entries = []
        for number, line in enumerate(self.fetch(ctx).read_bytes().splitlines(), 1):
            try:
                entries.append(self.model.model_validate_json(line))
            except ValidationError as error:
                where = ctx.run.store.uri_of(self.key(ctx.run))
                raise CorruptObject(
                    f"{where}, line {number}: {fault(error)}; run {self.step} again"
                ) from None
        return entries

    def write(self, ctx: StepContext, entries: Iterable[Model]) -> None:
        """Write the lines of this step."""
        with self.path(ctx).open("w", encoding="utf-8") as out:
            out.writelines(f"{entry.model_dump_json(by_alias=True)}\n" for entry in entries)


@dataclass(frozen=True)
class RunDocument(Generic[Model]):
    """A JSON file of a run that no step owns: what people answer."""

    name: str  # relative to the run's folder
    model: type[Model]

    def key(self, run: Run) -> str:
        """Return the document's key in the store of a run."""
        return run.key(self.name)

    def uri(self, run: Run) -> str:
        """Return the document's URI."""
        return run.store.uri_of(self.key(run))

    def find(self, run: Run) -> Model | None:
        """Read the document, None when it is not there."""
        try:
            return self.model.model_validate_json(run.store.get_bytes(self.key(run)))
        except NotThere:
            return None
        except ValidationError as error:
            raise UserError(f"{self.uri(run)}: {fault(error)}") from None

    def note(self, ctx: StepContext) -> None:
        """Note the document among the inputs of a step."""
        name = self.name.rpartition("/")[2]
        local = ctx.scratch / name
        ctx.run.store.get_file(self.key(ctx.run), local)
        ctx.note_input(name, self.uri(ctx.run), local)

    def put(self, run: Run, content: Model) -> None:
        """Write the document, over one that is there."""
        run.store.put_bytes(self.key(run), content.model_dump_json(indent=1).encode())
        run.store.flush()


def fault(error: ValidationError) -> str:
    """Return the first fault of a document: its field and what is wrong with it."""
    problem = error.errors()[0]
    field = ".".join(map(str, problem["loc"]))
    return f"{field}: {problem['msg']}" if field else str(problem["msg"])
