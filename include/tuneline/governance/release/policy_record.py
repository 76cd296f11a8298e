"""State in a release which policy it was made under, and which limits are looser."""

from __future__ import annotations

from pathlib import Path

from tuneline.artifacts.governance import ManifestPolicy, PolicyException
from tuneline.artifacts.releases import CONFIG_FILE, POLICY_FILE
from tuneline.config import read_policy
from tuneline.errors import UserError
from tuneline.evidence import Measurement, breach_in, measure
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.verdicts import looser_limits


def copied(ctx: StepContext) -> dict[str, Path]:
    """Return copies of the run's configuration and of the policy that bounds it, by name."""
    files = {name: ctx.scratch / name for name in (CONFIG_FILE, POLICY_FILE)}
    ctx.run.store.get_file(ctx.run.key(CONFIG_FILE), files[CONFIG_FILE])
    files[POLICY_FILE].write_bytes(ctx.run.policy.text.encode())
    return files


def stated(run: Run) -> ManifestPolicy:
    """Return what the manifest says of the policy."""
    return ManifestPolicy(
        version=run.policy.version,
        sha256=run.policy.sha256,
        looser=[
            PolicyException(
                setting=one.looser.setting,
                item=one.looser.item,
                critical=one.looser.critical,
                value=one.looser.value,
                allowed=one.looser.floor,
                reason=one.waiver.reason if one.waiver else None,
                by=one.waiver.by if one.waiver else None,
                approved_by=one.waiver.approved_by if one.waiver else None,
            )
            for one in looser_limits(run)
        ],
    )


def measurements(run: Run) -> list[Measurement]:
    """Judge whether this image has the policy under which the run was created.

    Another one warns on the laptop and fails under `profile: production`.
    """
    breach = breach_in(run.config.profile)
    try:
        here = read_policy().sha256
    except UserError:
        here = ""
    # Not `run.policy`, which is this image's where the run recorded none.
    recorded = (run.meta.get("policy") or {}).get("sha256")
    found = looser_limits(run)
    return [
        measure("policy_is_the_runs", here == recorded, "flag", "==", True, on_breach=breach),
        measure("limits_looser_than_policy", len(found), "settings"),
        measure("looser_limits_waived", sum(one.waiver is not None for one in found), "settings"),
    ]
