"""What an import took, and the rows that it rejected."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Rejection:
    """A row that was not taken.

    Attributes:
        place: file and line.
        reason: what is wrong, without a value of the row.
    """

    place: str
    reason: str


@dataclass
class Report:
    """Counts of an import; every row is taken, known or rejected.

    Attributes:
        rows: rows in the files.
        taken: rows that are new in the ledger.
        known: rows that it had already.
        logged: rows whose prompt is in the production log.
        passed_over: spans that are no call of a model; they are no rows.
    """

    rows: int = 0
    taken: int = 0
    known: int = 0
    logged: int = 0
    passed_over: int = 0
    rejected: list[Rejection] = field(default_factory=list)

    def document(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Return it in a line."""
        text = (
            f"{self.rows} rows: {self.taken} taken, {self.known} known before, "
            f"{len(self.rejected)} rejected; {self.logged} prompts logged"
        )
        return text + (f"; {self.passed_over} other spans" if self.passed_over else "")
