"""What a licence allows for a use, by the rules in `rules.yaml`.

Every decision is one of three: allowed, refused, or `person`, which asks somebody to read the
text. A licence that has no rule, or none at all, is never allowed, whatever the use.

Expressions are those of annex B of the SPDX specification 3.0.1
(https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/): WITH binds strongest,
then AND, then OR. Operators are upper case, so that a name such as `GNU Library or Lesser …` stays
one name; a name may hold spaces, as those of packages do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.config import PipelineConfig

Decision = Literal["allowed", "person", "refused"]
Use = Literal["research", "internal", "hosted", "distributed"]

NONE = "NOASSERTION"
_UNSTATED = ("", "unknown", "other", "none", "noassertion", "unlicensed")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Uses = dict[Use, Decision]


class _Users(_Part):
    limit: int
    binds: list[Use]
    reason: str


class _Region(_Part):
    region: str
    always: bool = False
    reason: str
    source: str


class _Outputs(_Part):
    decision: Decision
    reason: str


class _ModelName(_Part):
    begins: str
    binds: list[Use]
    reason: str


class _Kind(_Part):
    uses: Uses
    reason: str
    as_data: Uses = {}
    as_package: Uses = {}
    duties: list[str] = []


class Rule(_Part):
    """What one licence, or a family of them, allows; `rules.yaml` explains the fields."""

    ids: list[str] = Field(min_length=1)
    source: str
    read: str | None = None
    title: str | None = None
    names: list[str] | dict[str, list[str]] = []
    pattern: str | None = None
    kind: str | None = None
    uses: Uses = {}
    reason: str | None = None
    as_data: Uses = {}
    as_package: Uses = {}
    as_generator: Uses = {}
    generator_reason: str | None = None
    family: str | None = None
    users: _Users | None = None
    not_for: _Region | None = None
    outputs_train: _Outputs | None = None
    model_name: _ModelName | None = None
    notice: str | None = None
    display: str | None = None
    duties: list[str] = []


class _Exceptions(_Part):
    ids: list[str]
    makes: str
    source: str


class _Package(_Part):
    license: str
    source: str


class _Table(_Part):
    as_of: Any
    packages: dict[str, _Package]
    kinds: dict[str, _Kind]
    exceptions: list[_Exceptions]
    rules: list[Rule]


@cache
def table() -> _Table:
    """Return the rules."""
    import yaml

    text = resources.files("tuneline.licenses").joinpath("rules.yaml").read_text("utf-8")
    return _Table.model_validate(yaml.safe_load(text))


def duties_of(rule: Rule) -> list[str]:
    """Return what people have to do who use something under a licence."""
    shared = table().kinds[rule.kind].duties if rule.kind else []
    return [*shared, *rule.duties]


def normalise(text: str | None) -> str:
    """Return the SPDX id or expression of a licence in any spelling.

    `NOASSERTION` stands for none; an unknown text is returned as it is.
    """
    cleaned = re.sub(r"\s+", " ", (text or "").strip())
    if cleaned.lower() in _UNSTATED:
        return NONE
    key = key_of(cleaned)
    if key in _ids():
        return _ids()[key][0]
    return key.upper() if _by_pattern(key) else cleaned


def find_rule(name: str) -> Rule | None:
    """Return the rule for a licence's name in any spelling, None if there is none."""
    key = key_of(name)
    return _ids()[key][1] if key in _ids() else _by_pattern(key)


def key_of(name: str) -> str:
    """Return a name without case, spaces and punctuation; `LicenseRef-` marks unlisted ones."""
    lowered = name.strip().lower().removeprefix("licenseref-")
    return re.sub(r"[^a-z0-9.+]+", "-", lowered).strip("-")


@cache
def _ids() -> dict[str, tuple[str, Rule]]:
    """Return id and rule by every name that a rule lists."""
    found: dict[str, tuple[str, Rule]] = {}
    # A family that has a pattern is known by that alone: `CC-BY` without a version is none of it.
    for rule in (rule for rule in table().rules if rule.pattern is None):
        names = rule.names if isinstance(rule.names, dict) else {rule.ids[0]: rule.names}
        for identifier in rule.ids:
            for name in (identifier, *names.get(identifier, [])):
                found[key_of(name)] = (identifier, rule)
    return found


@cache
def _by_pattern(key: str) -> Rule | None:
    rules = (rule for rule in table().rules if rule.pattern and re.search(rule.pattern, key))
    return next(rules, None)


_TOKEN = re.compile(r"(\(|\)|(?<!\S)(?:AND|OR|WITH)(?!\S))")


@dataclass(frozen=True)
class Named:
    """One licence."""

    name: str
    exception: str | None = None


@dataclass(frozen=True)
class Joined:
    """Licences of which all bind (`AND`), or of which one can be chosen (`OR`)."""

    operator: Literal["AND", "OR"]
    parts: tuple[Expression, ...]


Expression = Named | Joined


def parse(text: str) -> Expression:
    """Parse an expression by recursive descent; a ValueError says where it breaks."""
    tokens = [token for token in map(str.strip, _TOKEN.split(text)) if token]

    def took(token: str) -> bool:
        return tokens[:1] == [token] and bool(tokens.pop(0))

    def joined(operator: Literal["AND", "OR"], part: Callable[[], Expression]) -> Expression:
        parts = [part()]
        while took(operator):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(operator, tuple(parts))

    def either() -> Expression:
        return joined("OR", lambda: joined("AND", one))

    def one() -> Expression:
        if not took("("):
            return Named(name(), name() if took("WITH") else None)
        inner = either()
        if not took(")"):
            raise ValueError("a parenthesis is not closed")
        return inner

    def name() -> str:
        if not tokens or _TOKEN.fullmatch(tokens[0]):
            raise ValueError(f"{text!r}: a licence's name is missing before {tokens[:1]}")
        return tokens.pop(0)

    found = either()
    if tokens:
        raise ValueError(f"{text!r}: unexpected {tokens[0]!r}")
    return found


Role = Literal["model", "data", "package", "generator"]
# What `governance.intended_use` calls the uses.
_SETTINGS: dict[Use, str] = {"hosted": "commercial", "distributed": "distribution"}
_RANK: dict[Decision, int] = {"allowed": 0, "person": 1, "refused": 2}


@dataclass(frozen=True)
class Circumstances:
    """What a licence is judged for."""

    use: Use
    monthly_users: int | None = None  # of the licensee; None if nobody said
    in_eu: bool | None = None  # the licensee is at home in the European Union
    multimodal: bool = False  # the base model takes more than text
    outputs_train: bool = False  # answers of the tuned model will train other models
    model_name: str = ""  # of the tuned model
    base_family: str | None = None  # of the base model's licence, for data that a model wrote


@dataclass(frozen=True)
class Judgement:
    """The decision on a licence."""

    decision: Decision
    reason: str
    source: str  # address of the text that the rule was read from
    rules: Mapping[str, Rule]  # those that bind, by id; those not chosen from an OR do not


def judge(license_id: str, circumstances: Circumstances, role: Role = "model") -> Judgement:
    """Judge whether a licence allows a use."""
    whole = Named(license_id)
    if license_id == NONE or find_rule(license_id):
        return _judge(whole, circumstances, role)
    try:
        expression = parse(license_id)
    except ValueError:
        expression = whole
    return _judge(expression, circumstances, role)


def _judge(expression: Expression, circumstances: Circumstances, role: Role) -> Judgement:
    if isinstance(expression, Named):
        return _judge_one(expression, circumstances, role)
    parts = [_judge(part, circumstances, role) for part in expression.parts]
    if expression.operator == "OR":
        # The licensee chooses; the first of the best binds.
        return min(parts, key=lambda part: _RANK[part.decision])
    worst = max(parts, key=lambda part: _RANK[part.decision])
    rules = {name: rule for part in parts for name, rule in part.rules.items()}
    decisive = [part for part in parts if part.decision == worst.decision]
    reason = "; ".join(dict.fromkeys(part.reason for part in decisive))
    return Judgement(worst.decision, reason, worst.source, rules)


def _judge_one(named: Named, circumstances: Circumstances, role: Role) -> Judgement:
    name = normalise(named.name)
    if name == NONE:
        return Judgement("person", "no licence is stated", "", {})
    rule = find_rule(named.name)
    if rule is None:
        return Judgement("person", f"{name[:60]}: there is no rule for this licence", "", {})
    if named.exception is not None:
        return _with_exception(name, named.exception, rule, circumstances, role)
    return _by_rule(name, rule, circumstances, role)


def _with_exception(
    name: str, exception: str, rule: Rule, circumstances: Circumstances, role: Role
) -> Judgement:
    shown = f"{name} WITH {exception}"
    plain = _by_rule(name, rule, circumstances, role)
    known = next((e for e in table().exceptions if exception in e.ids), None)
    if known is None:
        why = f"{shown}: there is no rule for this exception"
        worst = plain.decision if plain.decision == "refused" else "person"
        return Judgement(worst, why, rule.source, {shown: rule})
    eased = table().kinds[known.makes].uses[circumstances.use]
    if _RANK[eased] >= _RANK[plain.decision]:
        return plain
    return Judgement(
        eased, f"{shown}: {_verb(eased, circumstances.use)}", known.source, plain.rules
    )


def _by_rule(name: str, rule: Rule, circumstances: Circumstances, role: Role) -> Judgement:
    decision, reason = _uses(rule, role, circumstances)
    reason = f"{name}: {_verb(decision, circumstances.use)} ({reason})"
    source = rule.source
    for worse, why, where in _demands(rule, circumstances, role):
        if _RANK[worse] > _RANK[decision]:
            decision, reason, source = worse, f"{name}: {why}", where
    return Judgement(decision, reason, source, {name: rule})


def _uses(rule: Rule, role: Role, circumstances: Circumstances) -> tuple[Decision, str]:
    use = circumstances.use
    kind = table().kinds[rule.kind] if rule.kind else None
    reason = rule.reason or (kind.reason if kind else "")
    uses = {**(kind.uses if kind else {}), **rule.uses}
    if role == "data":
        uses |= {**(kind.as_data if kind else {}), **rule.as_data}
    elif role == "package":
        uses |= {**(kind.as_package if kind else {}), **rule.as_package}
    elif role == "generator":
        reason = rule.generator_reason or reason
        if rule.family is None or rule.family != circumstances.base_family:
            uses |= rule.as_generator
    return uses.get(use, "person"), reason


def _demands(rule: Rule, given: Circumstances, role: Role) -> Iterator[tuple[Decision, str, str]]:
    """Yield what a rule asks for beyond the use: decision, reason and source."""
    if role == "model" and (limit := rule.users) and given.use in limit.binds:
        shown = f"{limit.limit // 1_000_000} million monthly users"
        if given.monthly_users is None:
            why = f"allowed up to {shown}; set governance.monthly_users ({limit.reason})"
            yield "person", why, rule.source
        elif given.monthly_users > limit.limit:
            yield "refused", f"refused above {shown} ({limit.reason})", rule.source
    if role == "model" and (bar := rule.not_for) and (bar.always or given.multimodal):
        if given.in_eu is None:
            yield "person", f"set governance.domicile ({bar.reason})", bar.source
        elif given.in_eu:
            yield "refused", bar.reason, bar.source
    if role == "model" and (outputs := rule.outputs_train) and given.outputs_train:
        why = f"answers that train other models: {outputs.reason}"
        yield outputs.decision, why, rule.source
    wanted = rule.model_name if role in ("model", "generator") else None
    if wanted and given.use in wanted.binds:
        prefix = key_of(wanted.begins)
        if not key_of(given.model_name).startswith(prefix):
            why = (
                f"the model's name has to begin with {wanted.begins!r} ({wanted.reason}); set "
                f"`name: {prefix}-{given.model_name}`"
            )
            yield "refused", why, rule.source


def _verb(decision: Decision, use: Use) -> str:
    said = {"allowed": "allows", "refused": "refuses", "person": "a person decides on"}[decision]
    return f"{said} {_SETTINGS.get(use, use)} use"


_USES: dict[str, Use] = {
    "research": "research",
    "internal": "internal",
    "commercial": "hosted",
    "distribution": "distributed",
}
# How transformers calls models that take images or sound beside text.
_MULTIMODAL = "ForConditionalGeneration"


def circumstances_of(
    config: PipelineConfig, base_license: str | None, architecture: str
) -> Circumstances:
    """Return what the licences of a run are judged for."""
    governance = config.governance
    rule = find_rule(normalise(base_license))
    domicile = governance.domicile
    return Circumstances(
        use=_USES[governance.intended_use],
        monthly_users=governance.monthly_users,
        in_eu=None if domicile is None else domicile == "eu",
        multimodal=_MULTIMODAL in architecture,
        outputs_train=governance.outputs_train_models,
        model_name=config.name,
        base_family=rule.family if rule else None,
    )


def generators_of(config: PipelineConfig, addresses: Iterable[str]) -> dict[str, str]:
    """Return the licence of the model that wrote each source's answers, where one is stated."""
    stated = config.governance.generated_by
    found = {address: stated.get(address, stated.get("*")) for address in addresses}
    return {address: license_id for address, license_id in found.items() if license_id}
