"""The verdict of an item: the worst that its step, its gate and the audits say, then waivers.

A critical item that fails or was not run stops the release. One whose sample is too small to decide
stops it in production and warns on a laptop. Evidence that rests on what has changed since counts
as not run, see `tuneline.verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from tuneline.artifacts.artifact import Artifact, Document
from tuneline.artifacts.releases import manifest_key, pointer_of, read_release
from tuneline.catalogue import DATA_ORDER, ITEMS, STEPS, Item, Severity, get_item
from tuneline.config import Looser, Waiver
from tuneline.evidence import Evidence, Measurement, Read, Record, Verdict, conclude, worse
from tuneline.failures import ended_by_error
from tuneline.run import CONFIG, MEASUREMENTS, Run, hash_measurements

_STEPS = frozenset(step.id for step in STEPS)
# It can't write what it left a second time.
_WRITES_ONCE = "lineage"


@dataclass(frozen=True)
class Stale:
    """Why the evidence of a step is out of date.

    Attributes:
        because: which input of which step has changed, as a sentence.
        root: the step before it whose own input changed, which is to be run again first; None if
            it is this one.
    """

    step: str
    because: str
    root: Stale | None = None


@dataclass
class Freshness:
    """What is up to date in a run, as it is at the first look.

    Attributes:
        deep: whether the hashes with which the store holds the artifacts are compared too, one
            request for each, so that an artifact that was swapped beside its record shows.
    """

    run: Run
    deep: bool = False
    _entries: dict[str, Evidence | Record | None] = field(default_factory=dict)
    _known: dict[str, Stale | None] = field(default_factory=dict)

    def entry(self, step: str) -> Evidence | Record | None:
        """Return the evidence or record of a step, None if it has not been run."""
        if step not in self._entries:
            self._entries[step] = self.run.find_entry(step)
        return self._entries[step]

    def stale(self, step: str) -> Stale | None:
        """Return why a step's evidence is out of date; None if it is not, or there is none."""
        if step not in self._known:
            # A read of a step that in turn read this one can't come from the graph.
            self._known[step] = None
            self._known[step] = self._find(step)
        return self._known[step]

    def outdated(self, steps: Iterable[str]) -> list[str]:
        """Return a sentence for each cause that puts evidence of some steps out of date."""
        resting: dict[Stale, list[str]] = {}
        for found in filter(None, map(self.stale, steps)):
            names = resting.setdefault(found.root or found, [])
            if found.root is not None:
                names.append(found.step)
        return [
            f"{root.because}; the evidence of {', '.join(names)} rests on it"
            if names
            else root.because
            for root, names in resting.items()
        ]

    def _find(self, step: str) -> Stale | None:
        entry = self.entry(step)
        if entry is None:
            return None
        changed = [(read, now) for read in entry.reads if (now := self._now(read)) != read.sha256]
        if changed:
            more = f" (and {len(changed) - 1} more of its inputs changed)" if changed[1:] else ""
            return Stale(step, f"{_difference(step, *changed[0])}{more}: {self._advice(step)}")
        for name in dict.fromkeys(read.step for read in entry.reads if read.step in _STEPS):
            before = self.stale(name)
            if before is not None:
                root = before.root or before
                why = f"{step} rests on {root.step}, which is out of date: {root.because}"
                return Stale(step, why, root)
        return None

    def _advice(self, step: str) -> str:
        """Return what to do about a step whose input has changed."""
        if step != _WRITES_ONCE:
            return "run it again"
        store, name, version = self.run.store, self.run.config.name, self.run.run_id
        if not store.exists(manifest_key(name, version)):
            return "run it again, and promote after it"
        pointer = read_release(store, name, pointer_of(self.run.config.profile))
        if pointer is not None and version in {move.version for move in pointer.history}:
            return (
                f"{name} {version} was released with what its manifest states, and stays so; start "
                "a new run for a version with the new result"
            )
        return "its manifest is written once, so start a new run for a new version"

    def _now(self, read: Read) -> str | None:
        """Return the hash that something has now, None if it is not there."""
        if read.step == CONFIG:
            return self.run.sections.get(read.name)
        entry = self.entry(read.step) if read.step in _STEPS else None
        if entry is None:
            return None
        if read.name == MEASUREMENTS:
            return hash_measurements(entry)
        stated = next((ref.sha256 for ref in entry.artifacts if ref.name == read.name), None)
        if stated is not None and (stated != read.sha256 or not self.deep):
            return stated
        # Either a file beside the record, or one that is to be compared with it.
        held = self.run.store.find(Artifact(read.step, read.name).key(self.run))
        return held.sha256 if held else None


def _difference(step: str, read: Read, now: str | None) -> str:
    what = f"{read.name} of {'the configuration' if read.step == CONFIG else read.step}"
    if read.sha256 is None:
        return f"{step} found no {what}, which is there now"
    was = f"{step} read {what} as {read.sha256[:8]}…, which is "
    return was + ("gone now" if now is None else f"now {now[:8]}…")


# What a broken limit makes of an item.
_BROKEN = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.WARN)
# Steps that measure other items again; the name of a measurement starts with the item.
_AUDITS = {
    "final_audit": "the final audit",
    "loss_monitoring": "the steps of the training",
    "extraction_audit": "the extraction audit",
    "build_engine": "the packages of the engine's image",
}
# What to do first about an item that does not pass.
_REMEDIES = {
    "schema_validation": "read the rejected lines in quarantine/schema_validation and correct them",
    "deduplication": "read quarantine/deduplication; correct contradicting rows at their source",
    "token_length_audit": "raise data.max_tokens, or set data.too_long: split",
    "pii_scrubbing": "read rows (`tuneline data review-pii`), then waive what may leak",
    "distribution_balancing": "add rows of the rare classes, or set data.reference_shares",
    "lora_selection": "set training.alpha to 2 × training.r",
    "gradient_accumulation": "lower data.max_tokens, or give training more memory",
    "checkpointing": "clear the task train, so that it runs again",
    "quantization_verification": "set training.qlora: false, or choose another base model",
    "loss_monitoring": "lower training.learning_rate; if no one watched, start a tracking server",
    "holdout_performance": "add training rows or epochs; slices.json names the weak parts",
    "base_regression": "raise training.rehearsal_rows, or lower training.learning_rate",
    "determinism": "raise evaluation.determinism_prompts; flips.json has the flipped answers",
    "human_review": "run `make review`, or set evaluation.review: true",
    "latency_benchmark": "measure on deployment.target_hardware, or lower evaluation.load",
    "adapter_merging": "raise deployment.quality_rows, or set deployment.multi_tenant: true",
    "engine_optimization": "choose another deployment.engine, or lower deployment.parallel",
    "production_quantization": "raise deployment.quality_rows, or name other deployment.variants",
    "health_checks": "read the log of the engine under the fault that was not seen",
    "cold_start": "raise the time that a pod may take to start, or ship a smaller variant",
    "lineage": "commit your changes and start the run from the clean checkout",
    "cost_tracking": "compare the ledger with the engine's counts in the task's log",
    "drift_detection": "log more production requests: few a night show large changes alone",
    "license_audit": "state the licence (data.license), or answer the question in Airflow",
    "fallback": "release a second version, or name a larger model (governance.fallback.larger)",
}
_WORSE_THAN_RELEASED = "worse_than_released_by"
# Begins the summary of evidence whose input has changed since.
OUT_OF_DATE = "out of date: "


@dataclass(frozen=True)
class ItemStatus:
    """One row of the checklist: the verdict after gate, audits and waivers, and why.

    Attributes:
        because: the broken limits, or why it was waived or not run.
        strict: True if an inconclusive verdict stops the release too.
    """

    item: str
    phase: str
    severity: str
    verdict: Verdict
    summary: str
    because: str
    strict: bool = False

    @property
    def stops_release(self) -> bool:
        """True if this verdict refuses promotion."""
        stopping = {Verdict.FAIL, Verdict.NOT_RUN}
        if self.strict:
            stopping.add(Verdict.INCONCLUSIVE)
        return self.severity == Severity.CRITICAL and self.verdict in stopping

    @property
    def remedy(self) -> str:
        """What to do first if the item does not pass."""
        return _REMEDIES[self.item]

    def as_dict(self) -> dict[str, Any]:
        """Return the row of `tuneline checklist --json`."""
        row = asdict(self)
        del row["strict"]
        return row


class _Gate(BaseModel):
    """The fields of `gate.json` that decide; `broken` has a measurement for each failure."""

    verdict: Verdict
    summary: str
    broken: list[Measurement | None] = []


@dataclass(frozen=True)
class _Opinion:
    """The verdict of a second measurement of an item, by the gate or an audit."""

    source: str
    verdict: Verdict
    why: str


def status(run: Run, item_id: str, grounds: Grounds | None = None) -> ItemStatus:
    """Return the status of one item of a run; `grounds` where the caller has them already."""
    item = get_item(item_id)
    grounds = grounds or Grounds(run)
    run, fresh = grounds.run, grounds.fresh
    evidence = fresh.entry(item.id)
    if not isinstance(evidence, Evidence):
        return _status(run, item, Verdict.NOT_RUN, "not run", "the step left no evidence")
    stale = fresh.stale(item.id)
    if stale is not None:
        said = f"{OUT_OF_DATE}{evidence.summary}"
        return _status(run, item, Verdict.NOT_RUN, said, stale.because)
    raised = ended_by_error(evidence)
    # A person can accept what was measured. A critical item has to be measured.
    unmeasured = raised and item.severity == Severity.CRITICAL
    waivers = [] if unmeasured else [w for w in counting_waivers(run) if w.item == item.id]
    left, accepted = _without(evidence.measurements, waivers)
    verdict, summary = Verdict.PASS if accepted else evidence.verdict, evidence.summary
    if any(m.ok is False for m in left):
        verdict = worse(verdict, conclude(left))
    reasons = ["its step ended with an error"] if raised else _broken(left)
    for opinion in _second_opinions(run, item, fresh, waivers, accepted):
        if worse(verdict, opinion.verdict) != verdict:
            verdict = opinion.verdict
            summary = f"{evidence.summary} (but {opinion.source}: {opinion.why})"
        if opinion.verdict in (*_BROKEN, Verdict.NOT_RUN):
            reasons.append(f"{opinion.source}: {opinion.why}")
    if verdict != Verdict.NOT_APPLICABLE:
        limits = [one for one in grounds.limits if one.looser.item == item.id]
        if loose := [str(one.looser) for one in limits if one.waiver is None]:
            stops = item.severity == Severity.CRITICAL and run.config.profile == "production"
            verdict = worse(verdict, Verdict.FAIL if stops else Verdict.WARN)
            reasons.append(f"the policy: {'; '.join(loose)}")
        accepted += [f"{one.looser}: {one.told}" for one in limits if one.waiver is not None]
        reasons += [f"waived by {run.meta.get('started_by')}: {text}" for text in accepted]
        verdict = worse(verdict, Verdict.WAIVED) if accepted else verdict
    row = _status(run, item, verdict, summary, "; ".join(reasons) or "every limit holds")
    doubted = (m.name for m in left if m.ok is False)
    # Under no profile does a model that may be worse take the place of the released one.
    return replace(row, strict=row.strict or _WORSE_THAN_RELEASED in doubted)


def checklist(run: Run, grounds: Grounds | None = None) -> list[ItemStatus]:
    """Return the 25 rows of a run; an item that a failure kept from running names that failure."""
    grounds = grounds or Grounds(run)
    rows = [status(run, item.id, grounds) for item in ITEMS]
    critical = (row for row in rows if row.severity == Severity.CRITICAL)
    failed = next((row.item for row in critical if row.verdict == Verdict.FAIL), None)
    if failed is None:
        return rows
    because = f"{failed} failed and stopped the run before it"
    return [row if grounds.fresh.entry(row.item) else replace(row, because=because) for row in rows]


def check_item(run_uri: str, item_id: str) -> ItemStatus:
    """Return the status of an item, for the task that judges it."""
    return status(Run.open(run_uri), item_id)


def counting_waivers(run: Run) -> list[Waiver]:
    """Return the waivers that count: those of a run that a person started."""
    return run.config.waivers if run.meta.get("started_by") else []


@dataclass(frozen=True)
class LooserLimit:
    """A limit that a run sets looser than the policy allows, and the waiver that counts for it."""

    looser: Looser
    waiver: Waiver | None

    @property
    def told(self) -> str:
        """The part of a sentence that says if it is accepted, and why."""
        if self.waiver is None:
            return "no one has accepted it"
        return f"accepted: {self.waiver.reason}"


def looser_limits(run: Run) -> list[LooserLimit]:
    """Return the limits that a run sets looser than the policy under which it was created."""
    return Grounds(run).limits


class Grounds:
    """What the verdicts of a run rest on besides each item's own evidence, looked up once."""

    def __init__(self, run: Run) -> None:
        # A verdict is no input of the step that asks for it; what that step reads itself is.
        self.run = replace(run, reads=None)
        self.fresh = Freshness(self.run)

    @cached_property
    def limits(self) -> list[LooserLimit]:
        """The limits that the run sets looser than its policy, with the waivers that count."""
        waivers = {waiver.limit: waiver for waiver in counting_waivers(self.run)}
        return [
            LooserLimit(one, next((waivers[n] for n in one.names if n in waivers), None))
            for one in self.run.policy.looser(self.run.config)
        ]


def _status(run: Run, item: Item, verdict: Verdict, summary: str, because: str) -> ItemStatus:
    strict = run.config.profile == "production"
    return ItemStatus(item.id, item.phase, item.severity, verdict, summary, because, strict)


def _broken(measurements: Sequence[Measurement]) -> list[str]:
    return [
        f"{m.name} is {_rounded(m.value)}, must be {m.rule} {_rounded(m.limit)} {m.unit}".rstrip()
        for m in measurements
        if m.ok is False
    ]


def _without(
    measurements: Sequence[Measurement], waivers: Sequence[Waiver]
) -> tuple[list[Measurement], list[str]]:
    """Return the measurements that no waiver accepts, and a sentence for each of the others."""
    left: list[Measurement] = []
    accepted = []
    for m in measurements:
        waiver = next((waiver for waiver in waivers if _covers(waiver, m)), None)
        if waiver is None:
            left.append(m)
        else:
            accepted.append(f"{_broken([m])[0]}, accepted up to {waiver.up_to}: {waiver.reason}")
    return left, accepted


def _covers(waiver: Waiver, measured: Measurement) -> bool:
    """Return True if a waiver accepts a measurement that broke its limit."""
    value, up_to = measured.value, waiver.up_to
    if measured.name != waiver.measurement or measured.ok is not False or up_to is None:
        return False
    if isinstance(value, bool) or isinstance(up_to, bool):
        return value is up_to
    if not isinstance(value, int | float):
        return False
    return value >= up_to if measured.rule in (">", ">=") else value <= up_to


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _second_opinions(
    run: Run, item: Item, fresh: Freshness, waivers: Sequence[Waiver], accepted: list[str]
) -> list[_Opinion]:
    """Return what the gate and the audits found on an item; what is waived joins `accepted`."""
    opinions = []
    gate = Document(item.id, "gate.json", _Gate).find(run)
    if gate is None and item.id in DATA_ORDER and run.config.profile == "production":
        why = "it left no gate.json; run the item by the DAG or by `tuneline run all`"
        opinions.append(_Opinion("the gate", Verdict.NOT_RUN, why))
    elif gate is not None:
        # A waiver accepts what the gate measured too, as far as it goes.
        named = [m for m in gate.broken if m is not None]
        left, waived = _without(named, waivers)
        whole = not waived or len(named) < len(gate.broken)
        said = gate.verdict if whole else conclude(left)
        entry = fresh.entry(item.id)
        stated = entry.measurements if entry else []
        known = [(m.name, m.value) for m in stated if m.ok is False]
        again = [m and (m.name, m.value) for m in gate.broken]
        why = "its audit table says the same" if known and known == again else gate.summary
        opinions.append(_Opinion("the gate", said, why))
    for step, source in _AUDITS.items():
        audit = fresh.entry(step)
        about = [m for m in audit.measurements if m.name.startswith(f"{item.id}.")] if audit else []
        stale = fresh.stale(step) if about else None
        if stale is not None:
            opinions.append(_Opinion(source, Verdict.NOT_RUN, stale.because))
            continue
        if about:
            left, waived = _without(about, waivers)
            accepted += waived
            why = "; ".join(_broken(left)) or "every limit holds"
            opinions.append(_Opinion(source, conclude(left), why))
    return opinions
