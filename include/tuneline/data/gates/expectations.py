"""Expectations of the gates that Great Expectations does not have.

Importing this module loads Great Expectations and registers them. A suite that is read back
before that loses them without an error; the gate notices it by their number.
"""

# No `from __future__ import annotations`: Great Expectations reads them at run time.
from typing import Any, ClassVar

from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.execution_engine.execution_engine import ExecutionEngine
from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider
from great_expectations.render.components import (
    LegacyRendererType,
    RenderedStringTemplateContent,
)
from great_expectations.render.renderer.renderer import renderer


class RowsByFate(TableMetricProvider):
    """Number of rows of an audit table that are kept, and that left with and without a reason."""

    metric_name = "table.rows_by_fate"

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(
        cls,
        execution_engine: PandasExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        **_: Any,
    ) -> dict[str, int]:
        frame, _unused, _unused2 = execution_engine.get_compute_domain(
            metric_domain_kwargs, domain_type=MetricDomainTypes.TABLE
        )
        kept = frame["kept"].astype(bool)
        reasoned = frame["reason"].notna()
        return {
            "kept": int(kept.sum()),
            "rejected": int((~kept & reasoned).sum()),
            "lost": int((~kept & ~reasoned).sum()),
            "kept with a reason to leave": int((kept & reasoned).sum()),
        }


class ExpectRowsToBeConserved(BatchExpectation):
    """Every row is either kept or stored among the rejects with its reason; none is missing."""

    stored_rejects: int
    missing: int

    metric_dependencies: ClassVar[tuple[str, ...]] = ("table.rows_by_fate",)
    success_keys: ClassVar[tuple[str, ...]] = ("stored_rejects", "missing")
    args_keys: ClassVar[tuple[str, ...]] = ("stored_rejects", "missing")

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    def _prescriptive_renderer(
        cls,
        configuration: ExpectationConfiguration | None = None,
        result: ExpectationValidationResult | None = None,
        runtime_configuration: dict[Any, Any] | None = None,
    ) -> list[RenderedStringTemplateContent]:
        """Return the sentence of the Data Docs."""
        template = {
            "template": "rows in = rows kept + $stored_rejects rejects that are stored; "
            "$missing of the rows that came in are missing",
            "params": configuration.kwargs if configuration else {},
        }
        return [
            RenderedStringTemplateContent(
                content_block_type="string_template", string_template=template
            )
        ]

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any] | None = None,
        execution_engine: ExecutionEngine[Any] | None = None,
    ) -> dict[str, Any]:
        fates: dict[str, int] = metrics["table.rows_by_fate"]
        conserved = (
            fates["rejected"] == self.stored_rejects
            and self.missing == 0
            and fates["lost"] == 0
            and fates["kept with a reason to leave"] == 0
        )
        shown = ", ".join(f"{count} {fate}" for fate, count in fates.items())
        return {"success": conserved, "result": {"observed_value": shown}}
