"""The checklist of a run as a page: first what needs somebody, each item with its evidence."""

from __future__ import annotations

import base64
import json
import math
import mimetypes
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader

from tuneline.artifacts.answers import APPROVALS, Approval
from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.data import DATA_DOCS
from tuneline.artifacts.releases import Release, released
from tuneline.artifacts.training import latest_runs
from tuneline.catalogue import DATA_ORDER, ITEMS, STEPS, Step, get_step
from tuneline.config import Waiver
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import Evidence, FileRef, Measurement, Record, Verdict
from tuneline.governance.release.canary import told_of
from tuneline.run import Run
from tuneline.verdicts import Grounds, ItemStatus, LooserLimit, checklist, counting_waivers

# Half the width of a 95 % interval, in standard errors.
_Z = 1.96
# Free space at both ends of the line, as a share of it.
_MARGIN = 0.06
_DIRECTIONS = {"<": "below", "<=": "below", ">": "above", ">=": "above"}


@dataclass(frozen=True)
class Bar:
    """Positions on a line, 0 (left) to 100 (right); None for what is not known."""

    value: float
    limit: float | None = None
    side: str = ""  # of the limit on which values hold: `below` or `above`
    interval: tuple[float, float] | None = None
    before: float | None = None


@dataclass(frozen=True)
class Figure:
    """A measurement as it is shown, with its value in the last release (None if it has none)."""

    m: Measurement
    before: Any
    bar: Bar | None


def figures(found: Evidence | Record, before: Evidence | None) -> list[Figure]:
    """Return the measurements of an item, each next to that of the last release."""
    values = {m.name: m.value for m in found.measurements}
    earlier = {m.name: m.value for m in before.measurements} if before else {}
    return [
        Figure(m, earlier.get(m.name), bar_of(m, values, earlier.get(m.name)))
        for m in found.measurements
    ]


def bar_of(m: Measurement, values: Mapping[str, Any], before: Any) -> Bar | None:
    """Return the bar of a measurement with a limit, None if there is nothing to compare.

    Args:
        values: all measurements of its item by name; `x_lower` and `x_upper` bound `x`.
    """
    side = _DIRECTIONS.get(m.rule or "", "")
    limit, earlier = _number(m.limit), _number(before)
    interval = _interval(m, values)
    stem = _stem(m.name)
    value = _number(values.get(stem) if interval and stem != m.name else m.value)
    if not side or value is None or limit is None:
        return None
    points = [value, limit, *(interval or ()), *([] if earlier is None else [earlier])]
    low, high = min(*points, 0.0), max(points)
    if not high > low or not math.isfinite(high - low):
        return None

    def at(point: float) -> float:
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * (point - low) / (high - low)), 1)

    return Bar(
        at(value),
        at(limit),
        side,
        (at(interval[0]), at(interval[1])) if interval else None,
        None if earlier is None else at(earlier),
    )


def _interval(m: Measurement, values: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval around a measurement, stated or by its standard error."""
    stem = _stem(m.name)
    low, high = _number(values.get(f"{stem}_lower")), _number(values.get(f"{stem}_upper"))
    if low is not None and high is not None and low <= high:
        return low, high
    value = _number(m.value)
    if value is None or not m.noise or not math.isfinite(m.noise):
        return None
    return value - _Z * m.noise, value + _Z * m.noise


def _stem(name: str) -> str:
    return name.removesuffix("_lower").removesuffix("_upper")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


_PLOTS = (".svg", ".png")
# Objects of the store that are asked for at once.
AT_ONCE = 16
# Files with examples of the rows that an item took out or got wrong.
_REMOVED, _WRONG = "removed.json", "wrong_rows.json"
_EXAMPLES = 12
# Steps whose section links to the trackers' own pages.
_TRAINED = ("loss_monitoring", "train", "sync_tracking")


@dataclass(frozen=True)
class Offender:
    """A row that broke a rule: where it is, and why; a text only if it was scrubbed."""

    place: str
    why: str
    text: str = ""


@dataclass(frozen=True)
class Section:
    """One item on the page; a helper step has no row."""

    step: str
    title: str
    row: ItemStatus | None
    found: Evidence | Record | None
    deciding: list[Figure] = field(default_factory=list)
    informing: list[Figure] = field(default_factory=list)
    offenders: list[Offender] = field(default_factory=list)
    docs: bool = False
    tracked: list[str] = field(default_factory=list)

    @property
    def plots(self) -> list[FileRef]:
        """Its pictures."""
        files = self.found.artifacts if self.found else []
        return [ref for ref in files if ref.name.endswith(_PLOTS)]

    @property
    def command(self) -> str:
        """The command that measures it again, without the run."""
        return " ".join(get_step(self.step).command)


@dataclass(frozen=True)
class Page:
    """All that the page of a run shows.

    Attributes:
        before: the release that the run is compared with.
        running: the last line of each step that is running.
    """

    run: Run
    sections: list[Section]
    before: Release | None = None
    running: dict[str, str] = field(default_factory=dict)
    approvals: list[Approval] = field(default_factory=list)
    waivers: list[Waiver] = field(default_factory=list)
    looser: list[LooserLimit] = field(default_factory=list)
    canary: str | None = None

    @property
    def rows(self) -> list[ItemStatus]:
        """The rows of its items."""
        return [section.row for section in self.sections if section.row]

    @property
    def groups(self) -> list[tuple[str, bool, list[Section]]]:
        """The sections by what they ask of a reader: heading, whether they are open, sections."""
        refusing: list[Section] = []
        doubtful: list[Section] = []
        waiting: list[Section] = []
        settled: list[Section] = []
        for section in self.sections:
            verdict = section.row.verdict if section.row else Verdict.PASS
            if verdict == Verdict.NOT_RUN:
                waiting.append(section)
            elif section.row and section.row.stops_release:
                refusing.append(section)
            elif verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE):
                settled.append(section)
            else:
                doubtful.append(section)
        named = (
            ("Refuses the release", True, refusing),
            ("Undecided, warned or waived", True, doubtful),
            ("Not run yet", False, waiting),
            ("Holds", False, settled),
        )
        return [(words, is_open, found) for words, is_open, found in named if found]

    @property
    def release(self) -> str:
        """A sentence that names the items which block the release."""
        stopping = [row for row in self.rows if row.stops_release]
        refusing = [row.item for row in stopping if row.verdict != Verdict.NOT_RUN]
        waiting = [row.item for row in stopping if row.verdict == Verdict.NOT_RUN]
        said = [
            f"{words}: {', '.join(items)}."
            for words, items in (("Release refused by", refusing), ("Not run yet", waiting))
            if items
        ]
        return " ".join(said) or "No critical item blocks the release."


def gather(run: Run, steps: Sequence[str] | None = None) -> Page:
    """Read what the page of a run shows: of all items, or of some steps alone.

    Objects are read side by side: from a bucket the page would otherwise take seconds.
    """
    grounds = Grounds(run)
    run = grounds.run
    wanted = [one for one in STEPS if one.id in steps] if steps else list(ITEMS)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ids = [one.id for one in STEPS]
        entries = dict(zip(ids, pool.map(grounds.fresh.entry, ids), strict=True))
        before = _released(run)
        rows = {row.item: row for row in checklist(run, grounds)}

        def section(one: Step) -> Section:
            return _section(run, one, rows.get(one.id), entries[one.id], before)

        sections = list(pool.map(section, wanted))
    asked = run.config.governance.canary.share
    answers = APPROVALS.find(run)
    return Page(
        run,
        sections,
        before,
        {name: text for name, text in run.in_progress().items() if not steps or name in steps},
        answers.approvals if answers else [],
        counting_waivers(run),
        grounds.limits,
        told_of(run.store, run.config.name, run.run_id) if asked else None,
    )


def _section(
    run: Run,
    step: Step,
    row: ItemStatus | None,
    found: Evidence | Record | None,
    before: Release | None,
) -> Section:
    if found is None:
        return Section(step.id, step.title, row, None)
    shown = figures(found, evidence_of(before, step.id))
    deciding = [one for one in shown if one.m.rule is not None]
    tracked = latest_runs(run) if step.id in _TRAINED else []
    return Section(
        step.id,
        step.title,
        row,
        found,
        # What is broken comes first.
        sorted(deciding, key=lambda one: one.m.ok is not False),
        [one for one in shown if one.m.rule is None],
        _offenders(run, found),
        step.id in DATA_ORDER and run.store.exists(docs_key(run, step.id, "index.html")),
        [one.url for one in tracked if one.url],
    )


def _released(run: Run) -> Release | None:
    try:
        return released(run)
    except TunelineError:
        # Its own page says what is wrong with it.
        return None


def evidence_of(release: Release | None, step: str) -> Evidence | None:
    """Return the evidence that a release ships of an item, None if it ships none that is read."""
    try:
        return release.evidence(step) if release else None
    except TunelineError:
        return None


def _offenders(run: Run, found: Evidence | Record) -> list[Offender]:
    """Return rows that an item took out or got wrong, as far as they may be shown."""

    def read(name: str) -> Any:
        try:
            return json.loads(content_of(run, found, name))
        except (TunelineError, ValueError):
            return None

    removed, wrong = read(_REMOVED), read(_WRONG)
    return list(_removed(removed or {}))[:_EXAMPLES] + list(_wrong(wrong or []))[:_EXAMPLES]


def _removed(document: Mapping[str, Any]) -> Iterator[Offender]:
    for code, found in document.get("reasons", {}).items():
        for one in found["examples"]:
            detail = one["reason"].partition(": ")[2]
            place = f"{one['source_file']} line {one['source_line']}"
            yield Offender(place, f"{code}: {detail}" if detail else code)


def _wrong(rows: Sequence[Mapping[str, Any]]) -> Iterator[Offender]:
    for row in rows:
        text = f"expected {row['expected']}\ngot {row['got']}"
        yield Offender(f"row {row['row_id']}", f"score {row['score']:g}", text)


def docs_key(run: Run, step: str, name: str) -> str:
    """Return the key of a file of the Data Docs of a data item."""
    return run.key("data", DATA_DOCS, step, name)


def path_of(*parts: str) -> str:
    """Return the path of an address; no part can lead elsewhere."""
    return "/".join(quote(part, "") for part in parts)


def tab_of(release: Release, up: str) -> str | None:
    """Return where Airflow shows the checklist of a release, None if no DAG made it."""
    made = release.manifest.airflow_run or {}
    if not {"dag_id", "run_id"} <= made.keys():
        return None
    return f"{up}{path_of('dags', made['dag_id'], 'runs', made['run_id'])}/plugin/release-checklist"


@dataclass(frozen=True)
class Links:
    """Addresses around the page of a run, relative to it.

    Attributes:
        up: the way to the root of Airflow's UI.
    """

    dag_id: str
    run_id: str
    up: str

    def file(self, step: str, name: str) -> str:
        """Return where a file of a step is shown."""
        place = path_of("release-checklist", "file", self.dag_id, self.run_id, step)
        return f"{self.up}{place}/{quote(name)}"

    def task(self, step: str) -> str:
        """Return where Airflow shows the task of a step."""
        return self.up + path_of("dags", self.dag_id, "runs", self.run_id, "tasks", step)

    def page(self) -> str:
        """Return the whole page of this run."""
        return self.up + path_of("release-checklist", "page", self.dag_id, self.run_id)


@cache
def templates() -> Environment:
    """Return the templates of all pages, which escape whatever they show."""
    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = lambda value: f"{value:.5g}" if isinstance(value, float) else value
    return made


def render(
    page: Page, links: Links | None = None, *, only: str | None = None, nonce: str = ""
) -> str:
    """Return the page of a run.

    Args:
        links: its place in Airflow; without one it is one file that needs nothing else, with all
            open and the pictures inside.
        only: the step to which it is limited.
        nonce: allows the page's own script; without one it has none.
    """
    counts = Counter(row.verdict.value for row in page.rows)
    return (
        templates()
        .get_template("checklist.html")
        .render(
            page=page,
            links=links,
            only=only,
            nonce=nonce,
            tally=counts.most_common(),
            live=links is not None and bool(page.running or counts[Verdict.NOT_RUN]),
            picture=partial(_inline, page.run),
            part=_part,
            tab_of=tab_of,
        )
    )


def _part(text: str) -> int | None:
    """Return the per cent that a line of progress states as `5 of 20`."""
    found = re.search(r"(\d{1,9}) of (\d{1,9})\b", text[:200])
    done, total = map(int, found.groups()) if found else (0, 0)
    return round(100 * min(done / total, 1)) if total else None


def _inline(run: Run, found: Evidence | Record, name: str) -> str:
    """Return a picture as a data URI, empty if it is gone."""
    try:
        return data_uri(name, content_of(run, found, name))
    except UserError:
        return ""


def content_of(run: Run, found: Evidence | Record, name: str) -> bytes:
    """Return the content of an artifact, compared with the hash that its step recorded.

    Raises:
        UserError: if the step left no such artifact, or it is gone.
    """
    step = found.step if isinstance(found, Record) else found.item
    ref = next((one for one in found.artifacts if one.name == name), None)
    if ref is None:
        raise UserError(f"{step} has left no {name} in {run.uri}")
    return run.store.get_bytes(Artifact(step, name).key(run), sha256=ref.sha256)


def data_uri(name: str, content: bytes) -> str:
    """Return a picture in the form that a page holds inside."""
    kind = mimetypes.guess_type(name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
