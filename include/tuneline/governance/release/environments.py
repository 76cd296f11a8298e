"""What the steps of a run were carried out in: code, image, packages, device; and its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tuneline.artifacts.governance import StepEnvironment, find_packages, image_of
from tuneline.catalogue import ITEMS, STEPS
from tuneline.environment import environment, other_code
from tuneline.evidence import Evidence, Measurement, Record, breach_in, measure
from tuneline.run import Run

_OWN = "lineage"


def environments(run: Run, shipping: Sequence[str]) -> list[StepEnvironment]:
    """Return the environments of the run's steps, each once for all steps that share it.

    Args:
        run: the run.
        shipping: helper steps of which something ships. Others may end while lineage is at work,
            and the manifest of a second try would differ.
    """
    found: dict[str, StepEnvironment] = {}
    for step, entry in _counted(run, shipping):
        # Lineage has no evidence of its own yet, and its pod still runs.
        stated = entry.environment if entry else environment()
        pod = image_of(step).find(run) if entry else None
        one = StepEnvironment(
            python=stated.get("python", ""),
            packages=find_packages(run, stated),
            device=stated.get("device", ""),
            code=stated.get("code") or {},
            image=pod.image if pod else "",
            image_id=pod.image_id if pod else "",
            steps=[],
        )
        found.setdefault(one.model_dump_json(), one).steps.append(step)
    return list(found.values())


def seeds(run: Run) -> dict[str, Any]:
    """Return the seeds of a run: that of the configuration, and those that steps drew or state."""
    found: dict[str, Any] = {"training.seed": run.config.training.seed}
    for item in ITEMS:
        entry = run.find_entry(item.id) if item.id != _OWN else None
        for measurement in entry.measurements if entry else []:
            if measurement.name.endswith("seed"):
                found[f"{item.id}.{measurement.name}"] = measurement.value
    return found


def environment_measurements(
    code: dict[str, Any], found: Sequence[StepEnvironment], profile: str
) -> list[Measurement]:
    """Judge what the steps ran in.

    Args:
        code: the identity of the code that made the run.
        found: the environments of its steps.
        profile: `laptop`, where other code warns, or `production`, where it fails.
    """
    breach = breach_in(profile)
    others = [step for one in found if other_code(code, one.code) for step in one.steps]
    digests = {one.image_id for one in found if one.image_id}
    return [
        measure("steps_of_other_code", len(others), "steps", "==", 0, on_breach=breach),
        measure("images_known_by_digest", len(digests), "images"),
    ]


def other_steps(code: dict[str, Any], found: Sequence[StepEnvironment]) -> list[str]:
    """Return the steps that ran other code than the DAG, each with how it differs."""
    return [
        f"{', '.join(one.steps)}: {why}" for one in found if (why := other_code(code, one.code))
    ]


def _counted(run: Run, shipping: Sequence[str]) -> Iterator[tuple[str, Evidence | Record | None]]:
    """Yield each step that counts, with its entry; lineage itself without one."""
    counted = {item.id for item in ITEMS} | set(shipping)
    for step in STEPS:
        if step.id == _OWN:
            yield step.id, None
        elif step.id in counted and (entry := run.find_entry(step.id)) is not None:
            yield step.id, entry
